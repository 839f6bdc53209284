"""Two ranks that train one model renew the units that one process renews on the whole batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from gloo_pair import run_both

SCRIPT = Path(__file__).with_name("two_ranks_renewal.py")
spec = importlib.util.spec_from_file_location("two_ranks_renewal", SCRIPT)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What each of two gloo processes reports."""
    return torch.load(run_both(str(SCRIPT), tmp_path_factory.mktemp("ranks")))


def tensors(found: dict) -> list[torch.Tensor]:
    units = [value for entry in found["renewal"].values() for value in entry.values()]
    return [*found["weights"], *found["moments"], *map(torch.as_tensor, units)]


@pytest.mark.parametrize("utility", ranks.UTILITIES)
def test_ranks_stay_bit_equal_although_they_draw_differently(findings, utility):
    first, second = (found[utility] for found in findings)
    assert first["done"] == second["done"]
    for a, b in zip(tensors(first), tensors(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("utility", ranks.UTILITIES)
def test_ranks_do_what_one_process_does_with_the_whole_batch(findings, utility):
    single = ranks.train(ranks.build(), lambda step: torch.cat(ranks.parts(step)), utility, 3, 1)
    assert sum(len(units) for one in single["done"] for units in one.values()) >= 5
    assert findings[0][utility]["done"] == single["done"]
    for a, b in zip(tensors(findings[0][utility]), tensors(single), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_step_without_a_pass_is_refused_on_every_rank(findings):
    for found in findings:
        assert "module '3' saw none" in found["blind"]


def test_a_sharded_layer_is_refused_by_name(findings):
    for found in findings:
        assert "module '3' (Linear) must have its whole weight on every rank" in found["sharded"]
