"""A NaN is a warning while its step may be left out, and critical once it is in the weights."""

import math

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import Reading, RunStore
from thalweg.watch.rules.divergence import Divergence

NAN = math.nan


def told(*rows):
    rule = Divergence({"optimizer": "SGD", "lr": 0.1})
    found = [one for step, name, value in rows for one in rule.see(Reading(step, name, value))]
    return [(one.severity, one.step) for one in found]


@pytest.mark.parametrize("worst", [NAN, math.inf])
def test_a_step_that_the_loop_leaves_out_is_a_warning_that_claims_no_more(worst):
    weight = nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([weight], lr=0.1)
    with thalweg.watch(None, opt, store=None, budget=1e9) as run:
        for step in range(1, 40):
            loss = (weight**2).sum() * (worst if step in (10, 11, 12, 13) else 1)
            run.log(loss=loss, step=step)
            if loss.isfinite():
                opt.zero_grad()
                loss.backward()
                opt.step()
    assert [(one.severity, one.step) for one in run.findings] == [("warning", 10)]
    assert "unless this step is left out" in run.findings[0].message


def test_it_is_critical_once_a_later_step_has_it():
    assert told((3, "loss", NAN), (3, "gradient norm", NAN)) == [("warning", 3)]
    assert told((3, "loss", NAN), (3, "gradient norm", NAN), (4, "gradient norm", NAN)) == [
        ("warning", 3),
        ("critical", 3),
    ]
    assert told((3, "gradient norm", NAN), (10, "weight norm", NAN))[1:] == [("critical", 3)]
    assert told(*((step, "loss", NAN) for step in range(3, 24))) == [("warning", 3), ("critical", 3)]


def test_it_is_not_while_gradients_are_finite():
    rows = [row for step in range(3, 20) for row in ((step, "loss", NAN), (step, "gradient norm", 1.0))]
    assert told(*rows) == [("warning", 3)]


@pytest.mark.parametrize("kind", ["curvature", "loss"])
def test_a_curvature_that_is_not_finite_is_left_out_and_tried_again_later(small, tmp_path, kind):
    """The root of a square has no second derivative at zero."""

    def loss_fn(model, batch):
        loss = small.loss_fn(model, batch)
        if run.step <= 50:
            zero = model[0].weight.sum() - model[0].weight.sum().detach()
            loss = loss + (zero.square().sqrt() if kind == "curvature" else math.inf)
        return loss

    options = {"loss_fn": loss_fn, "budget": 1e9, "store": tmp_path / "s"}
    with thalweg.watch(small.model, small.opt, **options) as run:
        small.train(50, run)
        words = run.left_out()["sharpness"]
        small.train(150, run)
    assert run.disabled == {} and [one.name for one in run.findings if "switched" in one.name] == []
    assert words.startswith("left out 2 times, the last time before step 42: ") and "finite" in words
    with RunStore(tmp_path / "s") as store:
        steps = [one.step for one in store.readings(1, "sharpness")]
    assert steps and min(steps) > 50 and len(steps) >= 3
