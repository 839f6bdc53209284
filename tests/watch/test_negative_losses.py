"""Losses below zero, such as those of densities and of policies: factors say nothing of them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import Reading, all_rules
from thalweg.watch.growth import Losses

ADAM = {"optimizer": "Adam", "lr": 1e-3}


def found(rows, *names):
    rules = [rule for rule in all_rules(ADAM) if not names or rule.name in names]
    seen = [Reading(step, name, value, {}, {}) for step, name, value in rows]
    return {
        one.name
        for reading in seen
        for rule in rules
        if reading.name in rule.reads
        for one in rule.see(reading)
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_density_that_is_learnt_well_is_not_about_to_diverge(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    opt = torch.optim.Adam(model.parameters(), 5e-3)
    weights = torch.randn(5, 1)
    with thalweg.watch(model, opt, store=None, budget=1e9) as run:
        for _ in range(200):
            x = torch.randn(64, 5)
            mean, log = model(x).chunk(2, 1)
            loss = F.gaussian_nll_loss(mean, torch.sin(x @ weights), log.exp())
            opt.zero_grad()
            loss.backward()
            run.log(loss=loss)
            opt.step()
    assert loss < 0 and not {"divergence ahead", "exploding gradient"} & {one.name for one in run.findings}


def test_a_loss_that_falls_ever_faster_below_zero_does_not_grow():
    losses = [-0.01 * 1.1**step for step in range(60)]
    assert found([(step, "loss", value) for step, value in enumerate(losses, 1)]) == set()


@pytest.mark.parametrize("start", [5.0, -1.0])
def test_a_growing_gradient_is_excused_by_a_loss_that_falls_on_either_side_of_zero_and_by_no_other(start):
    names = "exploding gradient", "divergence ahead"

    def rows(slope):
        for step in range(100):
            noise = 0.01 * math.sin(step)
            yield step, "loss", start - slope * max(step - 50, 0) + noise
            yield step, "gradient norm", 1.4 ** max(step - 70, 0)

    assert found(rows(0.02), *names) == set()
    assert found(rows(0.0), *names) == set(names)


def test_whether_losses_fall_does_not_depend_on_where_zero_is():
    for shift in (0.0, -100.0):
        falling, flat, few = Losses(4), Losses(4), Losses(4)
        for step in range(1, 40):
            noise = 0.05 * math.sin(3.7 * step)
            falling.add(step, 10 - 0.1 * step + noise + shift)
            flat.add(step, 10 + noise + shift)
        few.add(1, shift)
        assert falling.fall and not flat.fall and not few.fall


def test_rules_of_shares_of_the_loss_are_silent_below_zero():
    names = "low coherence", "noise-dominated batch", "lazy regime", "loss of plasticity", "phase change"
    for rule in all_rules(ADAM):
        if rule.name in names[:4]:
            assert not list(rule.see(Reading(1, "loss", -0.1))) and rule.said
    # Changes of the targets, each learnt worse than the last.
    rows = [(step, "loss", -2 + 0.3 * (step // 100) + (step % 100 < 50)) for step in range(1, 800)]
    rows = [(step, "dormant units", step / 2000) for step in range(1, 800)] + rows
    assert found(sorted(rows, key=lambda row: row[0]), *names) == set()
