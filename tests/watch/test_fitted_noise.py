"""What weights learn by heart, in the unit of the loss: against fits to pure noise, and by kind of loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.watch import Reading
from thalweg.watch.fitted_noise import UNKNOWN, FittedNoise
from thalweg.watch.moment import Moment
from thalweg.watch.rules.low_coherence import LowCoherence
from thalweg.watch.sensors.gradient_noise import gradient_noise


def bound(model, loss, parts, weights, examples, readings=1):
    fitted = FittedNoise()
    for _ in range(readings):
        for part in parts:
            with fitted.part(model, part) as heard:
                heard.append(loss(model(part[0]), part[1]))
        found = fitted.bound(weights, examples)
    return found


def parts(make, size=6, width=4):
    torch.manual_seed(0)
    return [(torch.randn(size, width), make(size)) for _ in range(4)]


NET = nn.Linear(4, 3)
CLASSES = parts(lambda n: torch.randint(0, 3, (n,)))
LABELS = parts(lambda n: torch.randint(0, 2, (n, 3)).float())
NUMBERS = parts(lambda n: torch.randn(n, 3))
SEQUENCES = [(x[:, None].expand(-1, 5, -1), torch.randint(0, 3, (6, 5))) for x, _ in CLASSES]
for _, labels in SEQUENCES:
    labels[:, 3:] = -100  # three of five positions count


@pytest.mark.parametrize(
    ("loss", "data", "unit"),
    [
        (F.cross_entropy, CLASSES, 1.0),
        (lambda z, y: F.nll_loss(z.log_softmax(1), y) / 4, CLASSES, 0.25),
        (lambda z, y: F.cross_entropy(z, y, reduction="sum"), CLASSES, 6.0),
        (F.binary_cross_entropy_with_logits, LABELS, 1 / 3),
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()), SEQUENCES, 1 / 3),
    ],
)
def test_likelihoods_gain_half_a_nat_a_weight_in_their_own_unit(loss, data, unit):
    for readings in (1, 3):
        found = bound(NET, loss, data, weights=15, examples=1000, readings=readings)
        assert found == pytest.approx(unit * 15 / 2000, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "data"),
    [
        (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.3), CLASSES),
        (lambda z, y: F.cross_entropy(z, y) + 0.5, CLASSES),
        (F.multi_margin_loss, CLASSES),
        (lambda z, y: F.l1_loss(z, y), NUMBERS),
        (lambda z, y: -F.cross_entropy(z, y), CLASSES),
    ],
)
def test_of_other_losses_nothing_is_known(loss, data):
    assert bound(NET, loss, data, 15, 1000, readings=5) == UNKNOWN


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("times", [1.0, 0.5, 300.0])
def test_a_fit_of_noise_takes_the_share_of_squared_errors_that_is_told(outputs, times):
    """Least squares on targets that no input tells: the loss falls by what was promised."""
    torch.manual_seed(0)
    n, width, data = 400, 40, []
    falls, found = [], []
    for _ in range(100):
        x, y = torch.randn(n, width).double(), torch.randn(n, outputs).double()
        loss = lambda z, y: times * F.mse_loss(z, y)  # noqa: E731
        net = nn.Linear(width, outputs, bias=False).double()
        first = loss(torch.zeros_like(y), y).item()
        net.weight.data = torch.linalg.lstsq(x, y).solution.T
        last = loss(net(x), y).item()
        falls.append(first - last)
        data = [(a, b) for a, b in zip(x.split(100), y.split(100), strict=True)]
        found.append(bound(net, loss, data, weights=width * outputs, examples=n))
    assert sum(found) == pytest.approx(sum(falls), rel=0.06)  # three deviations of the sum
    assert bound(net, loss, data, weights=n * outputs, examples=n) == UNKNOWN  # all of it


def test_a_late_label_of_a_language_model_is_beside_its_logits():
    def late(z, y):
        return F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    data = [(x[:, None] + torch.randn(6, 5, 4), torch.randint(0, 3, (6, 5))) for x, _ in CLASSES]
    assert bound(NET, late, data, 15, 1000) == pytest.approx(15 / 2000 / 4, rel=1e-5)


def test_the_sensor_tells_it_for_the_loss_at_hand():
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 1), (torch.randn(64, 4), 100 * torch.randn(64, 1))
    loss_fn = lambda model, batch: F.mse_loss(model(batch[0]), batch[1])  # noqa: E731
    loss = loss_fn(model, batch)
    loss.backward()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    at = Moment(1, dict(model.named_parameters()), opt, model, loss_fn, batch)
    extra = gradient_noise.read(at)[0].extra
    assert extra["by heart"] == pytest.approx(loss.item() * (5 / 64) / (1 - 5 / 64), rel=1e-4)
    assert not model._forward_hooks


def feed(by_heart):
    """Losses a thousand times as large as nats, of which half is learnt at no coherence."""
    rule, found = LowCoherence({}), []
    for step in range(1, 400):
        found += rule.see(Reading(step, "loss", 2300.0 - step))
        if not step % 5:
            extra = {"signal": 1e-6, "noise": 1.0, "weights": 1000.0, "different": 500.0} | by_heart
            found += rule.see(Reading(step, "gradient coherence", 1e-6, extra=extra))
    return found


def test_a_large_loss_is_judged_in_its_own_unit():
    assert feed({"by heart": 2e3}) and feed({"by heart": UNKNOWN})
    assert not feed({"by heart": 20.0})
