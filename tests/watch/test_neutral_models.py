"""Watching changes nothing of models that draw, count, remember, or are listened to by somebody else."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch.moment import Raw, sensor

STEPS = 25


class Net(nn.Module):
    """A classifier whose forward pass a case changes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def hidden(self, x):
        return self.first(x).relu()

    def forward(self, x):
        return self.last(self.hidden(x))


class Variational(Net):
    def hidden(self, x):
        return super().hidden(x) + 0.1 * torch.randn(len(x), 16)


class AlwaysDropping(Net):
    def hidden(self, x):
        return F.dropout(super().hidden(x), 0.3)


class Drawing(Net):
    """Stochastic depth by the generators of numpy and Python, global ones and its own."""

    def __init__(self):
        super().__init__()
        self.own, self.numpys = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def hidden(self, x):
        scale = np.random.randn() + random.random() + random.gauss(0, 1) + self.numpys.random()
        return super().hidden(x) * (scale + torch.rand((), generator=self.own))


class Stateful(Net):
    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRU(8, 16, batch_first=True), None

    def hidden(self, x):
        before = None if self.state is None or self.state.shape[1] != len(x) else self.state
        found, state = self.cell(x[:, None], before)
        self.state = state.detach()
        return found[:, 0]


class Counting(Net):
    """A buffer, numbers and containers that move in any mode, and a frozen parameter that follows another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(16))
        self.register_buffer("calls", torch.zeros(()))
        self.slow = nn.Parameter(torch.ones(16), requires_grad=False)
        self.count, self.table, self.recent = 0, {"seen": [0]}, deque(maxlen=3)
        self.array, self.kept = np.zeros(1), []
        # Of kinds that are not copied.
        self.register_buffer("sparse", torch.eye(2).to_sparse(), persistent=False)
        self.register_buffer("spread", torch.zeros(1).expand(4), persistent=False)
        self.nested = torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])

    def hidden(self, x):
        found = super().hidden(x)
        with torch.no_grad():
            self.calls += 1
            self.center.data.mul_(0.9).add_(found.mean(0), alpha=0.1)
            self.slow.data = 0.9 * self.slow.data + 0.1 * self.first.bias
        self.count += 1
        self.table["seen"][0] += len(x)
        self.table[f"new {self.count}"] = 1
        self.recent.append(float(self.center[0]))
        self.array += 1
        self.kept.append(found.detach())
        del self.kept[:-2]
        moved = self.count + self.table["seen"][0] + len(self.table) + self.array[0] + sum(self.recent)
        return found - self.center + self.slow + 1e-3 * moved + self.kept[0].mean()


class Normalised(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


class OldStyle(nn.Sequential):
    """Hooks that are the computation."""

    def __init__(self):
        one = nn.utils.weight_norm(nn.Linear(8, 16))
        super().__init__(one, nn.ReLU(), nn.utils.spectral_norm(nn.Linear(16, 4)))


def plain_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, loss_fn, watched):
    """Losses, and everything that is left, after the same training."""
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    options = {"loss_fn": loss_fn, "store": None, "budget": 1e9}
    run = thalweg.watch(model, opt, **options) if watched else None
    source = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randn(64, 8, generator=source), torch.randint(4, (64,), generator=source)
        loss = loss_fn(model, batch)
        opt.zero_grad()
        loss.backward()
        if run is not None:
            run.log(loss=loss, batch=batch)
        opt.step()
        losses.append(loss.item())
    if run is not None:
        run.close()
        assert not run.disabled
        ran = {name for name, account in run.budget.accounts.items() if account.runs}
        assert {"sharpness", "gradient noise", "backward signal", "dormant units", "opposing signals"} <= ran
    return losses, [value.clone() for value in model.state_dict().values()]


def both(make, loss_of=lambda model: plain_loss):
    """The same training without and with watching."""
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        model = make()
        result = train(model, loss_of(model), watched)
        drawn = torch.rand(()).item(), random.random(), np.random.randn()
        found.append((*result, drawn))
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make", [Variational, AlwaysDropping, Drawing, Stateful, Counting, Normalised, OldStyle]
)
def test_training_is_bit_identical(make):
    (losses, state, drawn), (watched_losses, watched_state, watched_drawn) = both(make)
    assert losses == watched_losses
    assert all(torch.equal(one, other) for one, other in zip(state, watched_state, strict=True))
    assert drawn == watched_drawn


def in_a_list(model):
    found = []
    model.first.register_forward_hook(lambda module, inputs, output: found.append(output))
    return found


def of_an_object(model):
    class Collector:
        def __init__(self):
            self.found, self.calls = [], 0

        def hear(self, module, inputs, output):
            self.calls += 1
            self.note(output * self.calls)

        def note(self, output):
            self.found.append(output)

    collector = Collector()
    model.first.register_forward_hook(collector.hear)
    return collector.found


def before_a_module(model):
    found, count = [], 0

    def hook(module, inputs):
        nonlocal count
        count += 1
        found.append(inputs[0] * count)

    model.last.register_forward_pre_hook(hook)
    return found


def of_gradients(model):
    found = []

    def hook(gradient):
        found.append(gradient.detach())
        return gradient / len(found)

    model.first.weight.register_hook(hook)
    return found


@pytest.mark.parametrize("listen", [in_a_list, of_an_object, before_a_module, of_gradients])
def test_a_hook_whose_features_are_in_the_loss_gathers_none_of_ours(listen):
    def loss_of(model):
        found = listen(model)

        def loss(model, batch):
            value = plain_loss(model, batch) + 1e-2 * sum(one.abs().mean() for one in found)
            found.clear()
            return value

        return loss

    (losses, state, _), (watched_losses, watched_state, _) = both(Net, loss_of)
    assert losses == watched_losses
    assert all(torch.equal(one, other) for one, other in zip(state, watched_state, strict=True))


def test_a_loss_that_counts_is_called_no_more_than_in_training():
    def loss_of(model):
        calls = []

        def loss(model, batch):
            calls.append(0.0)
            return plain_loss(model, batch) * (1 + len(calls) / 10)

        return loss

    (losses, *_), (watched_losses, *_) = both(Net, loss_of)
    assert losses == watched_losses


def test_a_hook_that_changes_the_output_fires_in_readings(monkeypatch):
    seen = []

    @sensor("one pass", every=1, needs=("model", "inputs"))
    def one_pass(at):
        seen.append(at.model(*at.inputs[0]).detach())
        return [Raw("one pass", 0.0)]

    monkeypatch.setattr("thalweg.watch.senses.all_sensors", lambda: [one_pass])
    model = Net()
    model.register_forward_hook(lambda module, inputs, output: torch.full_like(output, 7.0) + 0 * output)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with thalweg.watch(model, opt, store=None, budget=1e9):
        for _ in range(3):
            model(torch.randn(4, 8)).sum().backward()
            opt.step()
    assert seen and all(bool((one == 7).all()) for one in seen)
