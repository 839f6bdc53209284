"""Per-example probes of a batch that two DDP processes share say what one process says of the whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from gloo_pair import run_both

SCRIPT = Path(__file__).with_name("two_ranks_examples.py")
spec = importlib.util.spec_from_file_location("two_ranks_examples", SCRIPT)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What each of two gloo processes reports."""
    path = run_both(str(SCRIPT), tmp_path_factory.mktemp("ranks"))
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def expected():
    return ranks.readings(ranks.model(), ranks.batch(), [1, 3, ranks.CUT + 2], [ranks.CUT + 1])


@pytest.mark.parametrize(
    "reading",
    [
        "losses",
        "norms",
        "per layer",
        "cosines",
        "dots",
        "coherence",
        "chunked",
        "noise",
        "signal to noise",
        "opposing",
    ],
)
def test_each_process_reads_what_one_process_does(findings, expected, reading):
    for found in findings:
        same(found[reading], expected[reading])


def same(found, expected):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, tuple):
        for a, b in zip(found, expected, strict=True):
            same(a, b)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)
    else:
        assert found == (pytest.approx(expected, rel=1e-7) if expected is not None else None)
