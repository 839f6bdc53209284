"""The blocks of docs/nn.md on activations, memory, first layers, bounded weights and schedules."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "nn.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def ran(word: str) -> dict:
    """Names of the one block that uses ``word``."""
    (block,) = [block for block in BLOCKS if word in block]
    names: dict = {}
    exec(block, names)
    return names


def test_an_elephant_forgets_a_fraction_of_what_relu_forgets():
    errors = ran("Elephant(")["errors"]
    assert errors["Elephant"] < 0.3 * errors["ReLU"]


def test_a_randomised_block_keeps_what_the_page_says():
    names = ran("RandomizedLinear.of")
    floats = 1000 * (64 + 64 + 256 + 256)  # inputs of the norm, of both layers and of GELU
    statistics = 4 * 2 * 1000
    assert names["kept"](names["block"]) == 4 * floats + statistics
    projections = 100 * (64 + 256)
    assert names["kept"](names["small"]) == 4 * (floats - 1000 * (64 + 256) + projections) + statistics + 16


def test_a_first_layer_is_fitted():
    names = ran("TrAct.of")
    names["model"].zero_grad()
    names["cross_entropy"](names["model"](names["x"]), names["y"]).backward()
    assert not torch.allclose(names["model"][0].weight.grad, names["fitted"][0].weight.grad)


def test_weights_stay_below_the_bound_and_fold():
    names = ran("WeightCompander.of")
    assert names["plain"][0].weight.abs().max() < 0.1 * torch.pi
    x = names["data"].test[0]
    assert torch.equal(names["plain"](x), names["model"](x))


def test_dropout_and_smoothing_end_when_the_page_says():
    names = ran("EarlyDropout(")
    assert names["rates"][0] == pytest.approx(0.1) and names["rates"][19] == 0
    assert names["loss_fn"].steps == 100 and names["dropout"].rate == 0
