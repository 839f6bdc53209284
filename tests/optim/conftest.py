import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compiler():
    """What counts kernels needs a C++ compiler; thalweg itself does not, see test_without_compiler.py."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except RuntimeError as error:
        if "InvalidCxxCompiler" not in f"{type(error).__name__} {error}":
            raise
        pytest.skip("there is no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Tests compile what they use, whatever an earlier process has kept on disk."""
    monkeypatch.setattr("thalweg.optim._kept.read", lambda name: None)
