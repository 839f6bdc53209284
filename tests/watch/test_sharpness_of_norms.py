"""Of a network with batch normalisation, sharpness and noise are those of the loss that training sees."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg import tasks
from thalweg.watch import senses
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.curvature import tracked_sharpness
from thalweg.watch.sensors.gradient_noise import gradient_noise


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def largest_eigenvalue(model, batch):
    """Of the explicit Hessian, with every module in the mode in which it is."""
    named = dict(model.named_parameters())

    def loss(*values):
        moved = dict(zip(named, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, moved, batch[0]), batch[1])

    sizes = [p.numel() for p in named.values()]
    blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in named.values()))
    rows = [torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip(sizes, blocks, strict=True)]
    return torch.linalg.eigvalsh(torch.cat(rows))[-1].item()


@pytest.mark.parametrize("frozen", [False, True], ids=["by the batch", "by frozen statistics"])
def test_it_is_read_with_the_statistics_by_which_training_normalises(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[1].running_var.fill_(0.01)
    if frozen:
        model[1].eval()
    batch = 5 * torch.randn(32, 4).double(), torch.randint(3, (32,))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    at = Moment(1, dict(model.named_parameters()), opt, model, loss_fn, batch)
    before = copy.deepcopy(model.state_dict())
    found = [raw for _ in range(12) for raw in tracked_sharpness.read(at)][-1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training is not frozen
    assert found.value == pytest.approx(largest_eigenvalue(copy.deepcopy(model), batch), rel=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.Adam(params, lr=1e-3),
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    ],
    ids=["Adam", "SGD"],
)
def test_convolutions_with_biases_in_front_of_batch_norm_train_far_from_the_edge(optimizer, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(senses, "all_sensors", lambda: [tracked_sharpness])
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    layers += nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10))
    split = tasks.handwritten_digits(shape="image", seed=1)
    opt, read = optimizer(model.parameters()), []
    with thalweg.watch(model, opt, loss_fn=loss_fn, store=None, budget=1e9) as run:
        put = run.recorder.put
        run.recorder.put = lambda step, raws, *rest: (read.extend(raws), put(step, raws, *rest))
        for step in range(84):
            index = torch.arange(64 * step, 64 * step + 64) % len(split.train[0])
            loss = loss_fn(model, batch := (split.train[0][index], split.train[1][index]))
            opt.zero_grad()
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
    ratios = [one.extra["ratio"] for one in read if one.name == "sharpness"]
    assert len(ratios) > 1 and max(ratios[1:]) < 1
    assert "edge of stability" not in {one.name for one in run.findings}


def test_biases_in_front_of_batch_norm_do_not_swell_what_noise_adds_under_adam():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))
    split = tasks.handwritten_digits(shape="image", seed=0)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    at = Moment(1, dict(model.named_parameters()), opt, model, loss_fn)
    found = []
    for step in range(1, 101):
        chosen = torch.randint(0, len(split.train[0]), (64,))
        at.step, at.batch = step, (split.train[0][chosen], split.train[1][chosen])
        opt.zero_grad()
        loss = loss_fn(model, at.batch)
        loss.backward()
        if step > 50 and step % 5 == 0:
            found.append(gradient_noise.read(at)[0].extra)
        opt.step()
    # What a step of Adam can take away is a small part of the loss.
    assert all(abs(one["gain"]) < 0.1 * loss.item() and one["step"] < 0.1 * loss.item() for one in found)
