"""thalweg's own optimizers under watch: every sensor reads them, and reads what it reads of torch's."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch.nn import functional as F

import thalweg
from thalweg import optim, tasks
from thalweg.watch import ProbeDisabled, RunStore


def watched(make, path, steps=60):
    """The readings of a short run in which every sensor runs as often as it wants."""
    split = tasks.noisy_clusters(samples=256, seed=0)
    model = tasks.MLP([20, 32, 5], seed=0)
    opt = make(model.parameters())
    with (
        warnings.catch_warnings(),
        thalweg.watch(
            model,
            opt,
            loss_fn=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            evaluate=(split.train, split.test),
            budget=1e9,
            store=path,
        ) as run,
    ):
        warnings.simplefilter("error", ProbeDisabled)
        for _ in range(steps):
            loss = F.cross_entropy(model(split.train[0]), split.train[1])
            opt.zero_grad()
            loss.backward()
            run.log(loss=loss, batch=split.train)
            opt.step()
    assert run.disabled == {}
    with RunStore(path) as store:
        return {name: store.readings(run.id, name) for name in store.names(run.id)}


@pytest.mark.parametrize("name", optim.list_recipes())
def test_no_sensor_fails_on_a_recipe(name, tmp_path):
    recipe = optim.list_recipes()[name]
    fitting = {"rank": 2} if "rank" in inspect.signature(recipe).parameters else {}
    readings = watched(lambda params: recipe(params, **fitting), tmp_path / "run.sqlite")
    wanted = {"gradient norm", "weight norm", "dormant units", "softmax collapse", "train accuracy"}
    assert wanted <= readings.keys()


def test_sharpness_and_its_limit_are_those_of_torchs_adamw(tmp_path):
    ours, theirs = (
        watched(lambda params, make=make: make(params, lr=1e-3), tmp_path / f"{index}.sqlite", steps=120)[
            "sharpness"
        ]
        for index, make in enumerate((optim.AdamW, torch.optim.AdamW))
    )
    assert len(ours) >= 3
    assert [one.step for one in ours] == [one.step for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-3)
        assert one.extra["limit"] == pytest.approx(38 / 1e-3)
        assert one.extra["ratio"] == pytest.approx(other.extra["ratio"], rel=1e-3)


def test_an_optimizer_without_a_known_limit_gives_plain_sharpness_and_no_ratio(tmp_path):
    sharp = watched(lambda params: torch.optim.Adagrad(params, lr=1e-2), tmp_path / "run.sqlite", steps=120)[
        "sharpness"
    ]
    assert len(sharp) >= 3
    assert all(one.value > 0 and "ratio" not in one.extra for one in sharp)
