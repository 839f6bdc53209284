from __future__ import annotations

from dataclasses import FrozenInstanceError
from inspect import isfunction

import pytest
import torch
from torch import nn

import thalweg.probe
from thalweg._core.discover import modules
from thalweg.probe import Cost, costs, dormant_neurons, sharpness


def test_every_probe_declares_its_cost():
    public = {name: getattr(thalweg.probe, name) for name in dir(thalweg.probe)}
    probes = {name: value for name, value in public.items() if isfunction(value) and name != "costs"}
    assert len(probes) >= 16
    assert [
        name for name, probe in probes.items() if not isinstance(getattr(probe, "cost", None), Cost)
    ] == []


def test_public_names_are_those_of_the_files_and_belong_to_one_file_each():
    listed = [name for module in modules("thalweg.probe") for name in module.__all__]
    assert sorted(listed) == sorted(set(listed)) == dir(thalweg.probe)


def test_no_file_hides_a_public_name():
    files = {module.__name__.rpartition(".")[2] for module in modules("thalweg.probe")}
    assert files.isdisjoint(dir(thalweg.probe))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sharpnes'"):
        _ = thalweg.probe.sharpnes


def test_cost_is_frozen_and_refuses_what_is_no_count():
    @costs(1, 2, hvps=3, memory="one batch")
    def probe():
        return None

    assert probe.cost == Cost(forwards=1, backwards=2, hvps=3, memory="one batch")
    with pytest.raises(FrozenInstanceError):
        probe.cost.forwards = 2
    with pytest.raises(ValueError, match="backwards must be an integer >= 0, got -1"):
        costs(1, -1)


def test_declared_passes_are_a_ceiling_of_those_spent():
    class Counted(nn.Sequential):
        forwards = 0

        def forward(self, x):
            # Of the class: what a module or a hook keeps is put back by a probe.
            Counted.forwards += 1
            return super().forward(x)

    model = Counted(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    reading = sharpness(lambda: model(torch.ones(2, 3)).square().mean(), model.parameters())
    assert Counted.forwards == sharpness.cost.forwards and reading.hvps <= sharpness.cost.hvps
    Counted.forwards = 0
    dormant_neurons(model, torch.ones(2, 3))
    assert Counted.forwards == dormant_neurons.cost.forwards
