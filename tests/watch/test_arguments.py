"""Bad arguments of ``watch`` are refused by name, and targets that are no classes are no failure."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import thalweg
from thalweg.watch import RunStore

PAIR = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
LOADER = DataLoader(TensorDataset(*PAIR))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evaluate": (LOADER, LOADER)}, "evaluate must be .* got DataLoader as training data.*one batch"),
        ({"evaluate": PAIR}, r"evaluate must be .* got a tensor of shape \(8, 4\) as training data"),
        ({"evaluate": (PAIR, PAIR, PAIR)}, "evaluate must be .* got a tuple of 3"),
        ({"evaluate": 3}, "evaluate must be .* got int"),
        (
            {"evaluate": (PAIR, (PAIR[0], [0] * 8))},
            "evaluate must be .* got a list of 8 as targets of the test",
        ),
        (
            {"evaluate": (PAIR, (PAIR[0], PAIR[1][:5]))},
            r"evaluate must be .* \(8, 4\) and \(5,\) as test data",
        ),
        ({"loss_fn": 3}, "loss_fn must be a function .*got 3"),
        ({"on_finding": 3}, "on_finding must be a function .*got 3"),
        ({"sinks": 3}, "sinks must be a list .*got 3"),
        ({"sinks": "wandb"}, "sinks must be a list .*got 'wandb'"),
        ({"sinks": [3]}, "sinks must hold sinks .*got 3"),
        ({"store": 5}, "store must be the path of a file or None, got 5"),
        ({"name": 3}, "name must be a string or None, got 3"),
        ({"start": -1}, "start must be"),
        ({"budget": "0.03"}, "budget must be a number in .*got '0.03'"),
        ({"budget": True}, "budget must be a number in .*got True"),
        ({"budget": None}, "budget must be a number in .*got None"),
        ({"budget": float("nan")}, "budget must be in .*got nan"),
        ({"start": 2**53}, r"start must be .*got 9007199254740992: it must be below 2\*\*53"),
    ],
)
def test_they_are_refused_and_nothing_is_opened(small, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        thalweg.watch(small.model, small.opt, **{"store": tmp_path / "store", **change})
    assert not list(tmp_path.iterdir()) and not small.opt._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    "targets", [torch.arange(32) % 2, torch.full((32,), 7)], ids=["one logit", "too large"]
)
def test_targets_that_are_no_classes_of_the_logits_keep_sensors_silent(targets):
    torch.manual_seed(0)
    outputs = 1 if int(targets.max()) == 1 else 4
    model, x = nn.Linear(4, outputs), torch.randn(32, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(), thalweg.watch(model, opt, store=None, budget=1e9) as run:
        warnings.simplefilter("error")
        for _ in range(30):
            out = model(x)
            loss = F.mse_loss(out.mean(1), targets.float())
            loss.backward()
            run.log(loss=loss, batch=(x, targets))
            opt.step()
    left = run.left_out()
    assert not run.disabled
    assert left["opposing signals"].startswith("gives no readings") and "softmax collapse" in left


def test_an_optimizer_that_sets_its_rate_itself_has_no_reading_of_it():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 4))
    opt = transformers.Adafactor(model.parameters())
    x, y = torch.randn(32, 4), torch.arange(32) % 4
    with thalweg.watch(model, opt, store=None, budget=1e9) as run:
        for _ in range(60):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            run.log(loss=loss, batch=(x, y))
            opt.step()
            opt.zero_grad()
    assert not run.disabled
    assert "sets its learning rate itself" in run.left_out()["learning rate"]


@pytest.mark.parametrize("step", [-1, 1.5, "5", 2**53, 2**70, float("nan"), torch.tensor(2.5)])
def test_a_step_that_is_none_is_refused_where_it_is_logged(small, step):
    with (
        thalweg.watch(small.model, small.opt, store=None, budget=0) as run,
        pytest.raises(ValueError, match="step must be a whole number of steps, at least 0, got"),
    ):
        run.log(accuracy=0.5, step=step)


@pytest.mark.parametrize(
    "value",
    [torch.tensor(1j), torch.empty((), device="meta"), 10**400, 1j],
    ids=["complex tensor", "meta tensor", "beyond floats", "complex"],
)
def test_what_is_no_real_number_is_refused_where_it_is_logged(small, value):
    with (
        thalweg.watch(small.model, small.opt, store=None, budget=0) as run,
        pytest.raises(ValueError, match="loss must be a"),
    ):
        run.log(loss=value)


def test_a_number_may_be_of_any_kind_that_holds_one(small, tmp_path):
    kinds = (True, 1, np.float32(1), np.bool_(True), np.array(1), np.array([1.0]), np.array([[True]]))
    tensors = [torch.tensor(1).to(kind) for kind in (torch.bool, torch.uint8, torch.bfloat16, torch.float64)]
    values = [*kinds, *tensors, *(one.reshape(1, 1) for one in tensors)]
    with thalweg.watch(small.model, small.opt, store=tmp_path / "s", budget=0) as run:
        for step, value in enumerate(values, 1):
            run.log(accuracy=value, loss=value, step=step)
    with RunStore(tmp_path / "s") as store:
        for name in ("accuracy", "loss"):
            found = [(one.step, one.value) for one in store.readings(run.id, name)]
            assert found == [(step, 1.0) for step in range(1, len(values) + 1)]


def test_steps_may_be_of_any_whole_type(small, tmp_path):
    steps = [7, 8.0, torch.tensor(9), np.int64(10)]
    with thalweg.watch(small.model, small.opt, store=tmp_path / "s", budget=0) as run:
        for step in steps:
            run.log(accuracy=0.5, step=step)
    with RunStore(tmp_path / "s") as store:
        assert [one.step for one in store.readings(run.id, "accuracy")] == [7, 8, 9, 10]


def test_a_budget_may_be_a_tensor_or_an_array(small):
    for given in (torch.tensor(0.5), np.float32(0.5), np.array(0.5)):
        with thalweg.watch(small.model, small.opt, store=None, budget=given) as run:
            small.train(3)
        assert type(run.budget.fraction) is float and run.budget.fraction == 0.5
