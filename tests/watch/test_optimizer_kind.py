"""Which optimizers are judged as Adam is: they are asked, whatever they are called."""

import inspect

import pytest
import torch
from benchmarks.findings.healthy.text import chain_clipped
from torch import nn

from thalweg import optim
from thalweg.watch import Reading
from thalweg.watch.optimizer_kind import preconditions
from thalweg.watch.rules.edge_of_stability import EdgeOfStability
from thalweg.watch.watched import watched_optimizers

PLAIN = {"SGD", "SGDP", "Lion"}
TORCHS = {
    "SGD": False,
    "ASGD": False,
    "Rprop": False,
    "LBFGS": False,
    "Adam": True,
    "AdamW": True,
    "Adamax": True,
    "NAdam": True,
    "RAdam": True,
    "RMSprop": True,
    "Adagrad": True,
    "Adadelta": True,
    "Adafactor": True,
}
CHAINS = {
    "clip, adam, decay": ((optim.clip_norm(1.0), optim.adam(), optim.decay(0.1)), True),
    "low rank": ((optim.project(rank=2, every=9, inner=optim.adam()),), True),
    "momentum": ((optim.clip_spikes(), optim.momentum(0.9)), False),
    "nothing": ((), False),
}


def parameters():
    return [nn.Parameter(torch.ones(4, 4))]


@pytest.mark.parametrize("name", optim.list_recipes())
def test_every_recipe_but_three_divides_by_past_gradients(name):
    recipe = optim.list_recipes()[name]
    fitting = {"rank": 2} if "rank" in inspect.signature(recipe).parameters else {}
    opt = recipe(parameters(), **fitting)
    assert preconditions(opt) is (name not in PLAIN)
    (one,) = watched_optimizers(None, opt)
    assert one.about()["adaptive"] is (name not in PLAIN)


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_optimizers(name):
    assert preconditions(getattr(torch.optim, name)(parameters(), lr=0.1)) is TORCHS[name]


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_and_whatever_is_around_it(name):
    chain, answer = CHAINS[name]
    opt = optim.Descent(parameters(), *chain, lr=0.1)
    assert preconditions(opt) is preconditions(optim.SAM(opt)) is answer
    assert preconditions(optim.Average(optim.SAM(opt))) is answer


def test_the_first_steps_of_a_chain_with_adam_in_it_are_no_alarm():
    early = Reading(2, "sharpness", 1e5, {}, {"ratio": 400.0, "limit": 250.0, "lr": 0.1})
    for chain, adaptive in CHAINS.values():
        (one,) = watched_optimizers(None, optim.Descent(parameters(), *chain, lr=0.1))
        assert bool(list(EdgeOfStability(one.about()).see(early))) is not adaptive


def test_a_sound_run_with_such_a_chain_is_silent():
    outcome = chain_clipped.outcome(0)
    assert [one for one in outcome.findings if one.severity != "info"] == []
    assert chain_clipped.learnt(outcome)
