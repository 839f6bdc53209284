"""Fine-tuning: layers that do not train, or not yet."""

import math

import pytest
import torch

import thalweg
from thalweg.watch import RunStore

GENEROUS = 1e9


def watch(small, path):
    evaluate = (small.whole, small.whole)
    options = {"loss_fn": small.loss_fn, "evaluate": evaluate, "budget": GENEROUS, "store": path}
    return thalweg.watch(small.model, small.opt, **options)


def read(path, name):
    with RunStore(path) as store:
        return store.readings(1, name)


def test_layers_that_the_optimizer_does_not_hold_are_not_read_and_nothing_fails(small, tmp_path):
    for p in small.model[0].parameters():
        p.requires_grad_(False)
    frozen = small.model[0].weight.detach().clone()
    small.opt = torch.optim.AdamW([p for p in small.model.parameters() if p.requires_grad], lr=1e-2)
    with watch(small, tmp_path / "s") as run:
        small.train(45, run)
        head = [p.detach().double().norm().item() for p in small.opt.param_groups[0]["params"]]
    assert not run.disabled and all(one.runs >= 2 - one.idle for one in run.budget.accounts.values())
    assert torch.equal(frozen, small.model[0].weight) and small.model[0].weight.grad is None
    weights = read(tmp_path / "s", "weight norm")[-1]
    assert set(weights.layers) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    # Read before the last five steps.
    assert weights.value == pytest.approx(math.hypot(*head), rel=0.05)


def test_layers_that_thaw_are_read_from_then_on(small, tmp_path):
    head = {"4.weight", "4.bias"}
    for name, p in small.model.named_parameters():
        p.requires_grad_(name in head)
    with watch(small, tmp_path / "s") as run:
        small.train(44, run)
        for p in small.model.parameters():
            p.requires_grad_(True)
        small.train(44, run)
    assert not run.disabled
    norms = read(tmp_path / "s", "gradient norm")
    for one in norms:
        trained = {name for name, value in one.layers.items() if value > 0}
        assert trained == (head if one.step <= 44 else set(dict(small.model.named_parameters())))
    assert len(read(tmp_path / "s", "sharpness")) >= 2


def test_a_loop_in_which_nothing_trains_reads_zeros_and_finds_nothing(small, tmp_path):
    for p in small.model.parameters():
        p.requires_grad_(False)
    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(45):
            run.log(loss=small.loss_fn(small.model, small.whole))
            small.opt.step()
    assert not run.disabled and run.findings == []
    assert {one.value for one in read(tmp_path / "s", "gradient norm")} == {0.0}
