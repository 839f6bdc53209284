"""The code in docs/nn.md runs as it stands."""

import re
from pathlib import Path

import pytest

import thalweg.nn

PAGE = (Path(__file__).parents[2] / "docs" / "nn.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def ran(word: str, capsys) -> tuple[dict, str]:
    """Names and output of the one block that uses ``word``."""
    (block,) = [block for block in BLOCKS if word in block]
    names: dict = {}
    exec(block, names)
    return names, capsys.readouterr().out


def test_a_model_is_converted_for_large_and_for_micro_batches(capsys):
    out = ran("GhostBatchNorm.of", capsys)[1]
    assert out == "torch.Size([1, 10]) BatchNorm2d GhostBatchNorm BatchChannelNorm\n"


def test_projected_weights_keep_their_norm(capsys):
    layer = ran("project_after_step", capsys)[0]["layer"]
    assert layer.layer.weight.norm().item() == pytest.approx(layer.radius.item(), rel=1e-5)


def test_singular_values_are_held(capsys):
    found = ran("spectral_regularization", capsys)[0]["penalty"].norms()
    assert len(found) == 3 and all(0.5 < norm < 2.5 for norm in found.values())


def test_the_names_that_the_page_imports_are_documented():
    imported = ", ".join(re.findall(r"from thalweg\.nn import (.*)", PAGE)).split(", ")
    assert len(imported) >= 7
    for name in imported:
        assert getattr(thalweg.nn, name).__doc__
