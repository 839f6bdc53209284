"""Noise and coherence of networks with batch normalisation are those of minibatches in training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import tasks
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.gradient_noise import gradient_noise


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def perceptron():
    layers = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def convolutions():
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))


def moment(model, batch, loss=loss_fn):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model, batch).backward()
    return Moment(1, dict(model.named_parameters()), opt, model, loss, batch)


def gradient(model, batch, loss=loss_fn):
    found = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    return torch.cat([g.flatten() for g in found]).double()


def in_training(model):
    """A copy that normalises as training does, without dropout."""
    model = copy.deepcopy(model).eval()
    for one in model.modules():
        one.training = hasattr(one, "running_mean")
    return model


def expected(first, second, size):
    """Signal and noise from two gradients of parts of ``size`` examples."""
    signal = (first @ second).item()
    return signal, size * ((first @ first + second @ second).item() / 2 - signal)


@pytest.mark.parametrize("make", [perceptron, convolutions])
@pytest.mark.parametrize("trained", [0, 60])
def test_they_agree_with_the_spread_of_minibatch_gradients(make, trained):
    torch.manual_seed(9000)
    inputs, targets = tasks.handwritten_digits(shape="image", seed=9000).train
    model = make()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def draw():
        chosen = torch.randint(len(inputs), (128,))
        return inputs[chosen], targets[chosen]

    for _ in range(trained):
        opt.zero_grad()
        loss_fn(model, draw()).backward()
        opt.step()
    batches = [draw() for _ in range(160)]
    true = torch.stack([gradient(in_training(model), batch) for batch in batches])
    noise = 128 * true.var(0).sum().item()
    signal = true.mean(0).square().sum().item() - noise / 128 / len(batches)
    at, read = moment(model, batches[0]), []
    for at.batch in batches:
        read.append(gradient_noise.read(at)[0].extra)
    signals = torch.tensor([one["signal"] for one in read])
    assert torch.tensor([one["noise"] for one in read]).mean() == pytest.approx(noise, rel=0.15)
    assert abs(signals.mean() - signal) < 0.15 * signal + 4 * signals.std() / len(read) ** 0.5


def test_a_batch_is_halved_and_each_half_normalised_by_itself():
    torch.manual_seed(0)
    model, batch = perceptron().double(), (torch.randn(64, 64).double(), torch.randint(10, (64,)))
    at = moment(model, batch)
    before = copy.deepcopy(model.state_dict())
    extra = gradient_noise.read(at)[0].extra
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.training for one in model.modules())
    same = in_training(model)
    halves = [gradient(same, (batch[0][j::2], batch[1][j::2])) for j in range(2)]
    signal, noise = expected(*halves, 32)
    assert extra["signal"] == pytest.approx(signal, rel=1e-4) and extra["noise"] == pytest.approx(
        noise, rel=1e-4
    )


def test_by_frozen_statistics_the_batch_is_read_in_eight_parts():
    torch.manual_seed(0)
    model, batch = perceptron().double(), (torch.randn(64, 64).double(), torch.randint(10, (64,)))
    at = moment(model, batch)
    model[2].eval()
    extra = gradient_noise.read(at)[0].extra
    fixed = copy.deepcopy(model).eval()
    parts = torch.stack([gradient(fixed, (batch[0][j::8], batch[1][j::8])) for j in range(8)])
    signal = (parts.sum(0).square().sum() - parts.square().sum()).item() / 56
    assert extra["signal"] == pytest.approx(signal, rel=1e-4)
    assert extra["noise"] == pytest.approx(8 * (parts.square().sum(1).mean().item() - signal), rel=1e-4)


def test_a_small_batch_is_read_whole_beside_that_of_the_last_reading():
    torch.manual_seed(0)
    model = perceptron().double()
    batches = [(torch.randn(6, 64).double(), torch.randint(10, (6,))) for _ in range(2)]
    at = moment(model, batches[0])
    assert gradient_noise.read(at) == []
    # The same examples again agree with themselves, and say nothing of others.
    assert gradient_noise.read(at) == []
    at.batch = batches[1]
    extra = gradient_noise.read(at)[0].extra
    signal, noise = expected(*[gradient(in_training(model), batch) for batch in batches], 6)
    assert extra["signal"] == pytest.approx(signal, rel=1e-4) and extra["noise"] == pytest.approx(
        noise, rel=1e-4
    )


def test_normalisation_of_each_example_by_itself_is_that_of_training_too():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.ReLU()
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 3)).double()
    batch = torch.randn(64, 1, 8, 8).double(), torch.randint(3, (64,))
    at = moment(model, batch)
    extra = gradient_noise.read(at)[0].extra
    rows = torch.stack([gradient(in_training(model), (batch[0][j::8], batch[1][j::8])) for j in range(8)])
    signal = (rows.sum(0).square().sum() - rows.square().sum()).item() / 56
    assert extra["signal"] == pytest.approx(signal, rel=1e-4)


def test_what_other_processes_normalise_too_is_not_read_by_running_statistics():
    model = nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4), nn.Linear(4, 3))
    batch = torch.randn(64, 6), torch.randint(0, 3, (64,))
    at = moment(model, batch)
    assert gradient_noise.read(at) == [] and "SyncBatchNorm" in at.memory["silent"]
    model.eval()
    assert len(gradient_noise.read(at)) == 2 and at.memory["silent"] is None
