"""A loop that replaces its optimizer: the run says that it sees nothing, and follows the new one if told."""

import warnings

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import NothingSteps, Reading, RunStore
from thalweg.watch.rules.edge_of_stability import EdgeOfStability

GENEROUS = 1e9


def loop(small, opt, run, steps, accumulate=1):
    for _ in range(steps):
        for _ in range(accumulate):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            run.log(loss=loss, batch=small.whole)
        opt.step()
        opt.zero_grad()


def test_a_run_whose_optimizer_was_replaced_says_so_once(small):
    with thalweg.watch(small.model, small.opt, budget=0, store=None) as run:
        loop(small, small.opt, run, 20)
        other = torch.optim.SGD(small.model.parameters(), lr=0.1)
        with pytest.warns(NothingSteps, match=r"step 20.*run\.follow\(opt\)") as caught:
            loop(small, other, run, 120)
    assert len(caught) == 1 and run.step == 20
    (found,) = [one for one in run.findings if one.name == "no watched optimizer steps"]
    assert (found.step, found.severity) == (20, "warning")


def test_accumulated_gradients_and_several_optimizers_that_take_turns_are_no_such_case(small):
    other = torch.optim.SGD(small.model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSteps)
        with thalweg.watch(small.model, small.opt, budget=0, store=None) as run:
            loop(small, small.opt, run, 4, accumulate=80)
        assert run.step == 4
        with thalweg.watch(small.model, [small.opt, other], budget=0, store=None) as run:
            loop(small, other, run, 70)
    assert run.step == 70 and run.findings == []


def test_the_new_optimizer_is_read_from_there_on_with_its_own_limit(small, tmp_path):
    options = {"loss_fn": small.loss_fn, "budget": GENEROUS, "store": tmp_path / "s"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with thalweg.watch(small.model, small.opt, **options) as run:
            loop(small, small.opt, run, 30)
            opt = torch.optim.SGD(small.model.parameters(), lr=0.02)
            run.follow(opt)
            loop(small, opt, run, 60)
            assert not small.opt._optimizer_step_pre_hooks and opt._optimizer_step_pre_hooks
    assert run.step == 90 and run.disabled == {} and not opt._optimizer_step_pre_hooks
    with RunStore(tmp_path / "s") as store:
        rates = {one.step: one.value for one in store.readings(1, "learning rate")}
        sharp = store.readings(1, "sharpness")
    assert rates[31] == 0.02 and rates[min(rates)] == 0.01
    assert [one.extra["limit"] for one in sharp if one.step > 31] == pytest.approx(
        [2 / 0.02] * sum(one.step > 31 for one in sharp)
    )


def test_of_several_the_one_that_is_named_is_replaced(small, tmp_path):
    first, second = small.model[0].parameters(), small.model[4].parameters()
    opts = {"a": torch.optim.SGD(first, lr=0.1), "b": torch.optim.SGD(second, lr=0.1)}
    new = torch.optim.Adam(small.model[4].parameters(), lr=1e-3)
    with thalweg.watch(small.model, opts, budget=0, store=None) as run:
        with pytest.raises(ValueError, match=r"name must be one of \['a', 'b'\], got ''"):
            run.follow(new)
        run.follow(new, "b")
        for _ in range(3):
            small.loss_fn(small.model, small.whole).backward()
            opts["a"].step(), new.step()
    assert run.step == 3 and not opts["b"]._optimizer_step_pre_hooks


def test_what_cannot_be_followed_is_refused_and_the_old_one_is_watched_on(small):
    with thalweg.watch(small.model, small.opt, budget=0, store=None) as run:
        for wrong in ("adam", torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)):
            with pytest.raises(ValueError, match="optimizer must"):
                run.follow(wrong)
        loop(small, small.opt, run, 3)
    assert run.step == 3
    with pytest.raises(ValueError, match="closed"):
        run.follow(small.opt)


def test_the_first_steps_of_the_new_optimizer_are_judged_as_first_steps():
    rule = EdgeOfStability({"optimizer": "SGD", "adaptive": False, "lr": 0.1})
    high = {"ratio": 9.0, "limit": 20.0, "lr": 0.1}
    rule.restart({"optimizer": "Adam", "adaptive": True, "lr": 0.1, "since": 500})
    assert list(rule.see(Reading(510, "sharpness", 180.0, {}, high))) == []
    for step, ratio in ((521, 0.5), (541, 9.0)):
        assert list(rule.see(Reading(step, "sharpness", 180.0, {}, {**high, "ratio": ratio}))) == []
    (found,) = rule.see(Reading(561, "sharpness", 180.0, {}, high))
    assert found.severity == "warning" and "of Adam" in found.message
