"""``thalweg run`` of a script that trains many models, one after the other: none is held for longer."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.watch import RunStore
from thalweg.watch.script import watching_everything

X, Y = torch.randn(32, 8), torch.randint(0, 4, (32,))


def train(make, steps=6):
    """One training, of which weak references are left."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    opt = make(net.parameters())
    for _ in range(steps):
        F.cross_entropy(net(X), Y).backward()
        opt.step()
        opt.zero_grad()
    return weakref.ref(net), weakref.ref(opt)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def in_a_circle(params):
    opt = sgd(params)
    opt.me = opt
    return opt


@pytest.mark.parametrize(("make", "most"), [(sgd, 1), (in_a_circle, 4)])
def test_what_the_script_has_dropped_is_not_held_and_its_run_is_closed(tmp_path, make, most):
    threads = threading.active_count()
    with watching_everything(name="many", store=tmp_path / "s", budget=1e9) as runs:
        for count in range(1, 8):
            train(make)
            ended = [one.name for one in store_of(tmp_path) if one.ended is not None]
            # The latest is closed when the next one begins.
            assert count - len(ended) <= most
            assert threading.active_count() - threads <= most
        kept = [train(make) for _ in range(3)]
        gc.collect()
        assert sum(net() is not None for net, _ in kept) <= most
        assert [one.step for one in runs] == [6] * 10
    assert [(one.steps, one.outcome) for one in store_of(tmp_path)] == [(6, "finished")] * 10
    assert runs[0].left_out() and runs[0].findings == [] and runs[0].budget.spent > 0
    assert threading.active_count() == threads


def test_optimizers_that_the_script_keeps_are_watched_on_in_turns(tmp_path):
    nets = [nn.Linear(8, 4) for _ in range(6)]
    opts = [sgd(net.parameters()) for net in nets]
    with watching_everything(name="turns", store=tmp_path / "s", budget=0) as runs:
        for _ in range(5):
            for net, opt in zip(nets, opts, strict=True):
                F.cross_entropy(net(X), Y).backward()
                opt.step()
    assert [one.step for one in runs] == [5] * 6
    assert all(not net._forward_hooks for net in nets)


def store_of(folder):
    with RunStore(folder / "s") as store:
        return store.runs()
