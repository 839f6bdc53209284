"""Every way to write a training loop."""

import math

import pytest
import torch
from torch import nn

import thalweg
from thalweg import optim
from thalweg.watch import ProbeDisabled, RunStore, all_sensors

GENEROUS = 1e9


def stored(path, run=1):
    with RunStore(path) as store:
        return store.runs()[run - 1], {n: store.readings(run, n) for n in store.names(run)}


def test_readings_in_a_plain_loop_are_the_gradient_norm_and_loss_of_their_step(small, tmp_path):
    wanted, losses = [], []
    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(12):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            wanted.append(math.hypot(*(p.grad.double().norm().item() for p in small.model.parameters())))
            losses.append(loss.item())
            run.log(loss=loss)
            small.opt.step()
            small.opt.zero_grad()
    info, readings = stored(tmp_path / "s")
    # The first step's duration is not known before it has passed, so nothing has been earned by then.
    got = {one.step: one.value for one in readings["gradient norm"]}
    assert list(got) == list(range(2, 13))
    assert [got[step] for step in got] == pytest.approx(wanted[1:], rel=1e-5)
    assert [(one.step, one.value) for one in readings["loss"]] == list(enumerate(losses, start=1))
    assert (info.steps, info.outcome) == (12, "finished") and info.ended is not None


@pytest.mark.parametrize("call", [lambda opt, c: opt.step(c), lambda opt, c: opt.step(closure=c)])
def test_a_closure_is_read_after_its_gradient_exists(small, tmp_path, call):
    wanted = []

    def closure():
        small.opt.zero_grad()
        loss = small.loss_fn(small.model, small.whole)
        loss.backward()
        wanted.append(math.hypot(*(p.grad.double().norm().item() for p in small.model.parameters())))
        return loss

    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s"):
        for _ in range(6):
            assert call(small.opt, closure).requires_grad
    _, readings = stored(tmp_path / "s")
    assert [r.step for r in readings["gradient norm"]] == [2, 3, 4, 5, 6]
    assert [r.value for r in readings["gradient norm"]] == pytest.approx(wanted[1:], rel=1e-5)


def test_lbfgs_which_calls_its_closure_often_counts_steps_not_calls(small):
    opt = torch.optim.LBFGS(small.model.parameters(), max_iter=5)
    calls = []

    def closure():
        opt.zero_grad()
        loss = small.loss_fn(small.model, small.whole)
        loss.backward()
        calls.append(loss)
        return loss

    with thalweg.watch(small.model, opt, store=None) as run:
        for _ in range(3):
            opt.step(closure)
    assert run.step == 3 and len(calls) > 3


def wolfe(params):
    return torch.optim.LBFGS(params, lr=1, max_iter=5, line_search_fn="strong_wolfe")


def sharpness_aware(params):
    return optim.SAM(torch.optim.SGD(params, lr=0.1), radius=0.5)


@pytest.mark.parametrize("make", [wolfe, sharpness_aware])
def test_the_loss_of_a_step_is_that_of_its_closures_first_call(tmp_path, make):
    net, x, y = nn.Linear(8, 4), torch.randn(64, 8), torch.randint(0, 4, (64,))
    opt = make(net.parameters())
    first, calls, losses = [], 0, []

    def closure():
        nonlocal calls
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        run.log(loss=loss, call=float(calls))
        losses.append(loss.item())
        calls += 1
        return loss

    with thalweg.watch(net, opt, budget=0, store=tmp_path / "s") as run:
        for _ in range(6):
            first.append(calls)
            opt.step(closure)
    assert calls > 6
    _, readings = stored(tmp_path / "s")
    assert [(r.step, r.value) for r in readings["loss"]] == [
        (step, losses[call]) for step, call in enumerate(first, start=1)
    ]
    # Other numbers are kept, all of them at the step that they were logged in.
    wanted = [(sum(call >= one for one in first), float(call)) for call in range(calls)]
    assert [(r.step, r.value) for r in readings["call"]] == wanted


def test_accumulated_gradients_are_one_step(small, tmp_path):
    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(4):
            for _part in range(3):
                (small.loss_fn(small.model, small.whole) / 3).backward()
            small.opt.step()
            small.opt.zero_grad()
    assert run.step == 4 and stored(tmp_path / "s")[0].steps == 4


RECIPES = [optim.AdamW, optim.SGD, optim.Lion, optim.SPAM, optim.Grokfast, optim.PerpGrad, optim.AdEMAMix]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_read_like_torch_optimizers(small, recipe):
    opt = small.opt = recipe(small.model.parameters(), lr=1e-3)
    with thalweg.watch(small.model, opt, loss_fn=small.loss_fn, budget=0, store=None) as run:
        small.train(3, run)
    assert run.step == 3 and not run.disabled


def test_frozen_layers_read_as_zero_gradient_and_the_rest_as_theirs(small, tmp_path):
    for p in small.model[0].parameters():
        p.requires_grad_(False)
    options = {"loss_fn": small.loss_fn, "budget": GENEROUS, "store": tmp_path / "s"}
    with thalweg.watch(small.model, small.opt, **options) as run:
        small.train(45, run)
    _, readings = stored(tmp_path / "s")
    assert not run.disabled and len(readings["sharpness"]) >= 1
    layers = readings["gradient norm"][0].layers
    assert layers["0.weight"] == layers["0.bias"] == 0 and layers["4.weight"] > 0


def test_parameters_added_later_are_read_too(small, tmp_path):
    head = small.model[4]
    opt = small.opt = torch.optim.SGD(head.parameters(), lr=0.1)
    with thalweg.watch(small.model, opt, budget=GENEROUS, store=tmp_path / "s") as run:
        small.train(3, run)
        opt.add_param_group({"params": list(small.model[0].parameters())})
        small.train(3, run)
    norms = stored(tmp_path / "s")[1]["gradient norm"]
    assert set(norms[0].layers) == {"4.weight", "4.bias"}
    assert set(norms[-1].layers) == {"4.weight", "4.bias", "0.weight", "0.bias"}


def test_a_layer_that_is_replaced_in_mid_run_is_read_in_place_of_the_old_one(small, tmp_path):
    wanted = []
    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run:
        small.train(4, run)
        small.model[4] = nn.Linear(16, 4)
        small.opt.param_groups[0]["params"] = list(small.model.parameters())
        for _ in range(4):
            small.loss_fn(small.model, small.whole).backward()
            wanted.append(small.model[4].weight.grad.norm().item())
            small.opt.step()
            small.opt.zero_grad()
    read = {one.step: one.layers["4.weight"] for one in stored(tmp_path / "s")[1]["gradient norm"]}
    assert [read[step] for step in (5, 6, 7, 8)] == pytest.approx(wanted, rel=1e-5)
    assert run.disabled == {}


def test_without_a_model_gradients_and_weights_are_still_read(tmp_path):
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    opt = torch.optim.SGD([p], lr=0.0)
    with thalweg.watch(None, opt, budget=GENEROUS, store=tmp_path / "s"):
        for _ in range(12):
            p.grad = torch.tensor([6.0, 8.0])
            opt.step()
    _, readings = stored(tmp_path / "s")
    assert {r.value for r in readings["gradient norm"]} == {10.0}
    assert {r.value for r in readings["weight norm"]} == {5.0}


def test_an_exception_in_the_loop_is_the_outcome_and_comes_through(small, tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        thalweg.watch(small.model, small.opt, store=tmp_path / "s") as run,
    ):
        small.train(2, run)
        run.log(loss=1 / 0)
    assert stored(tmp_path / "s")[0].outcome == "ZeroDivisionError"
    assert not small.opt._optimizer_step_pre_hooks and not small.model._forward_hooks


def test_nan_in_the_first_step_is_critical_once_it_stays_and_switches_no_sensor_off(small, tmp_path):
    small.x[0] = float("nan")
    options = {"loss_fn": small.loss_fn, "evaluate": (small.whole, small.whole), "budget": GENEROUS}
    with thalweg.watch(small.model, small.opt, store=tmp_path / "s", **options) as run:
        for _ in range(45):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            run.log(loss=loss, batch=small.whole)
            small.opt.step()
            small.opt.zero_grad()
    expected = [("not finite", "warning", 1), ("not finite", "critical", 1)]
    assert [(f.name, f.severity, f.step) for f in run.findings] == expected
    assert not run.disabled
    with RunStore(tmp_path / "s") as store:
        first, _ = store.findings(1)
        assert math.isnan(first.evidence["loss"])
        assert all(math.isnan(r.value) for r in store.readings(1, "loss"))


def test_a_budget_of_nothing_reads_nothing_and_still_counts_steps(small, tmp_path):
    with thalweg.watch(small.model, small.opt, budget=0, store=tmp_path / "s"):
        small.train(7)
    info, readings = stored(tmp_path / "s")
    assert readings == {} and info.steps == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_read(make_small, tmp_path, dtype):
    case = make_small(dtype)
    options = {"loss_fn": case.loss_fn, "evaluate": (case.whole, case.whole), "budget": GENEROUS}
    with thalweg.watch(case.model, case.opt, store=tmp_path / "s", **options) as run:
        case.train(45, run)
        weights = [p.detach().double().norm().item() for p in case.model.parameters()]
    assert not run.disabled
    readings = stored(tmp_path / "s")[1]
    assert {"gradient norm", "weight norm", "train accuracy", "dormant units"} <= set(readings)
    assert readings["weight norm"][-1].value == pytest.approx(math.hypot(*weights), rel=0.05)


def test_logged_numbers_may_be_tensors_that_the_loop_goes_on_changing(small, tmp_path):
    total = torch.zeros(())
    with thalweg.watch(small.model, small.opt, budget=0, store=tmp_path / "s") as run:
        for step in range(5):
            total += 1
            run.log(loss=total, tokens_seen=step * 10, test_accuracy=torch.tensor([0.5]))
            small.opt.step()
    readings = stored(tmp_path / "s")[1]
    assert [r.value for r in readings["loss"]] == [1, 2, 3, 4, 5]
    assert [r.value for r in readings["tokens seen"]] == [0, 10, 20, 30, 40]
    assert [r.value for r in readings["test accuracy"]] == [0.5] * 5


@pytest.mark.parametrize("value", ["high", torch.zeros(2), [1.0], None])
def test_what_is_no_number_is_refused_by_name(small, value):
    with (
        thalweg.watch(small.model, small.opt, store=None) as run,
        pytest.raises(ValueError, match="accuracy must be"),
    ):
        run.log(accuracy=value)


def test_two_runs_at_once_share_a_store(small, make_small, tmp_path):
    other = make_small()
    path = tmp_path / "s"
    with (
        thalweg.watch(small.model, small.opt, store=path, budget=0) as first,
        thalweg.watch(other.model, other.opt, store=path, budget=0) as second,
    ):
        for step in range(20):
            first.log(loss=float(step))
            second.log(loss=100.0 + step)
            small.opt.step(), other.opt.step()
    assert (first.id, second.id) == (1, 2)
    assert [r.value for r in stored(path, 1)[1]["loss"]] == [float(s) for s in range(20)]
    assert [r.value for r in stored(path, 2)[1]["loss"]] == [100.0 + s for s in range(20)]


def test_a_loss_may_flatten_its_targets_as_a_view(small, tmp_path):
    tokens, following = torch.randint(16, (32, 6)), torch.randint(16, (32, 6))
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).view(-1, 16), batch[1].view(-1))

    with thalweg.watch(model, opt, loss_fn=loss_fn, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(12):
            loss = loss_fn(model, (tokens, following))
            loss.backward()
            run.log(loss=loss, batch=(tokens, following))
            opt.step()
            opt.zero_grad()
    _, readings = stored(tmp_path / "s")
    assert not run.disabled and {"sharpness", "gradient noise scale"} <= readings.keys()


def test_failing_sensors_are_switched_off_by_name_and_training_goes_on(small, tmp_path):
    def broken(model, batch):
        raise RuntimeError("no such batch")

    with (
        pytest.warns(ProbeDisabled, match="'sharpness'.*RuntimeError: no such batch") as caught,
        thalweg.watch(small.model, small.opt, loss_fn=broken, budget=GENEROUS, store=None) as run,
    ):
        small.train(30, run)
    failing = {one.name for one in all_sensors() if "loss_fn" in one.needs}
    assert len(caught) == 1 and run.step == 30 and run.disabled.keys() == failing
    assert run.left_out()["sharpness"] == f"switched off: {run.disabled['sharpness']}"
    assert [f.name for f in run.findings] == ["sensor switched off"]


def test_a_failing_callback_is_said_once_and_findings_are_kept(small):
    def angry(finding):
        raise RuntimeError("no mail today")

    with (
        pytest.warns(UserWarning, match="no mail today") as caught,
        thalweg.watch(small.model, small.opt, budget=0, store=None, on_finding=angry) as run,
    ):
        for value in (1.0, float("nan"), 1.0):
            run.log(loss=value, test_accuracy=0.5)
            small.opt.step()
    assert len(caught) == 1 and [f.name for f in run.findings] == ["not finite"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": -1}, "budget must be"),
        ({"model": nn.ReLU()}, "model must have parameters"),
        ({"model": nn.Linear(2, 2)}, "optimizer must hold parameters of the model"),
        ({"model": "mlp"}, "model must be"),
        ({"optimizer": "adam"}, "optimizer must be"),
    ],
)
def test_bad_arguments_are_refused_by_name(small, tmp_path, change, words):
    arguments = {"model": small.model, "optimizer": small.opt, "store": tmp_path / "s", **change}
    with pytest.raises(ValueError, match=words):
        thalweg.watch(**arguments)
    assert not (tmp_path / "s").exists() and not small.model._forward_hooks
