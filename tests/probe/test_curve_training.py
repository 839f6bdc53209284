from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.func import functional_call

from thalweg.probe import loss_curve, loss_line, train_curve


class Point(nn.Module):
    def __init__(self, *values: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def ring(model: Point) -> torch.Tensor:
    return (model.w.square().sum() - 1) ** 2


def test_the_bend_is_the_one_of_lowest_mean_loss():
    start, end = Point(-1.0, 0.05), Point(1.0, 0.05)
    curve = train_curve(ring, Point(0.0, 0.0), start, end, steps=1500, lr=0.05)
    t = np.linspace(0, 1, 401)[:, None]

    def mean_loss(control: np.ndarray) -> float:
        way = (1 - t) ** 2 * [-1.0, 0.05] + 2 * t * (1 - t) * control + t**2 * [1.0, 0.05]
        return float(np.trapezoid(((way**2).sum(1) - 1) ** 2, t[:, 0]))

    best = minimize(mean_loss, [0.0, 1.0], method="Nelder-Mead").x
    assert curve.control["w"].tolist() == pytest.approx(best.tolist(), abs=0.06)
    assert loss_line(ring, start, start, end).barrier > 0.9
    assert loss_curve(ring, start, start, curve.control, end).barrier < 0.1


def test_training_equals_a_literal_transcription(mlp):
    torch.manual_seed(1)
    start = {name: torch.randn_like(p) for name, p in mlp.model.named_parameters()}
    end = {name: torch.randn_like(p) for name, p in mlp.model.named_parameters()}
    curve = train_curve(
        lambda m: mlp.loss(m(mlp.inputs)),
        mlp.model,
        start,
        end,
        steps=6,
        lr=0.1,
        generator=torch.Generator().manual_seed(3),
    )
    source = torch.Generator().manual_seed(3)
    control = {name: ((start[name] + end[name]) / 2).requires_grad_() for name in start}
    adam = torch.optim.Adam(control.values(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / 6)
    for step in range(6):
        t = torch.rand((), generator=source).item()
        weights = {n: (1 - t) ** 2 * start[n] + 2 * t * (1 - t) * control[n] + t**2 * end[n] for n in start}
        loss = mlp.loss(functional_call(mlp.model, weights, (mlp.inputs,)))
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        assert curve.at[step] == t and curve.losses[step] == pytest.approx(loss.item())
    for name, value in control.items():
        torch.testing.assert_close(curve.control[name], value.detach())


def test_training_leaves_the_model_alone_and_frozen_weights_at_the_midpoint():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    end = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, x = torch.get_rng_state(), torch.randn(16, 3, generator=torch.Generator().manual_seed(0))

    def noisy(m: nn.Module) -> torch.Tensor:
        return m(x[torch.randint(16, (8,))]).square().mean()

    curve = train_curve(noisy, model, model, end, steps=5)
    assert torch.equal(torch.get_rng_state(), random) and len(set(curve.losses)) == 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and all(m.training for m in model.modules())
    torch.testing.assert_close(curve.control["0.bias"], (model[0].bias + end[0].bias) / 2)
    assert not torch.equal(curve.control["0.weight"], (model[0].weight + end[0].weight) / 2)
    path = loss_curve(lambda m: m(x).square().mean(), model, model, curve.control, end, norm_batches=[x])
    assert len(path.losses) == 25


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"lr": 0}, r"lr must be in \(0, inf\), got 0"),
        ({"loss_fn": lambda m: 1.0}, "must return a loss that requires a gradient"),
        ({"loss_fn": lambda m: m.w.sum() / 0}, "finite loss along the curve, got inf"),
    ],
)
def test_train_curve_refuses(changed, message):
    arguments = {"loss_fn": ring, "model": Point(1.0), "start": Point(1.0), "end": Point(2.0), **changed}
    with pytest.raises(ValueError, match=message):
        train_curve(**arguments)
