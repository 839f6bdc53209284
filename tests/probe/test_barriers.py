from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import layer_barriers, line_curvature, loss_line
from thalweg.tasks import CNN, GPT


class Pair(nn.Module):
    """Two layers of one weight each."""

    def __init__(self, first: float, second: float):
        super().__init__()
        self.first, self.second = Weight(first), Weight(second)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class Weight(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def product_well(model: Pair) -> torch.Tensor:
    return (model.first.w * model.second.w - 1) ** 2


def test_a_layer_moves_alone_and_the_chord_is_that_of_the_checkpoints():
    # From (1, 1) to (2, 1/2): together (1 + t)(1 - t/2) - 1 = t/2 - t²/2; alone t or -t/2 from the target.
    found = layer_barriers(product_well, Pair(0, 0), Pair(1, 1), Pair(2, 0.5), points=5)
    assert found.barrier == pytest.approx((1 / 8) ** 2) and found.whole.barrier_at == 0.5
    assert found.per_layer == pytest.approx({"first": 1.0, "second": 0.25})
    assert found.layers["first"].losses == pytest.approx((0, 1 / 16, 1 / 4, 9 / 16, 1))
    assert found.layers["second"].ends == found.whole.ends == (0, 0)
    assert found.layers["second"].distance == 0.5


def test_layers_are_modules_with_parameters_and_a_named_one_takes_everything_below_it():
    model, end = (GPT(7, 4, layers=2, heads=2, width=8, seed=seed) for seed in (0, 1))
    tokens = torch.arange(8).view(2, 4) % 7

    def loss_fn(m: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(m(tokens).flatten(0, 1), tokens.flatten())

    every = layer_barriers(loss_fn, model, model, end, points=3)
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert set(every.layers) == owners and len(owners) == 16
    block = layer_barriers(loss_fn, model, model, end, layers=["blocks.1"], points=3).layers["blocks.1"]
    mixed = copy.deepcopy(model)
    with torch.no_grad():
        for a, b in zip(mixed.blocks[1].parameters(), end.blocks[1].parameters(), strict=True):
            a.mul_(0.5).add_(b, alpha=0.5)
    assert block.losses[1] == pytest.approx(loss_fn(mixed).item(), rel=1e-6)


def test_normalisation_statistics_follow_a_layer_that_moves_alone():
    model, end = (CNN(3, width=4, seed=seed) for seed in (0, 1))
    images, targets = torch.randn(16, 1, 8, 8), torch.randint(3, (16,))

    def loss_fn(m: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(m(images), targets)

    found = layer_barriers(loss_fn, model, model, end, layers=["0"], points=3, norm_batches=[images])
    moved = copy.deepcopy(model)
    moved[0].load_state_dict(end[0].state_dict())
    torch.optim.swa_utils.update_bn([images], moved)
    assert found.layers["0"].losses[2] == pytest.approx(loss_fn(moved.eval()).item(), rel=1e-5)


def test_layer_barriers_refuses_unknown_layers(mlp):
    with pytest.raises(ValueError, match="layers must name modules with parameters, got '1'"):
        layer_barriers(lambda m: 1.0, mlp.model, mlp.model, mlp.model, layers=["1"])
    with pytest.raises(ValueError, match="layers must name at least one module, got none"):
        layer_barriers(lambda m: 1.0, mlp.model, mlp.model, mlp.model, layers=[])


def test_a_layer_with_nothing_but_a_tied_weight_leads_to_the_one_that_has_it():
    with pytest.raises(ValueError, match=r"got 'head', whose weight is tied to 'embed\.weight'"):
        layer_barriers(lambda m: 1.0, Tied(), Tied(), Tied(), layers=["head"])


class Curve(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def double_well(model: Curve) -> torch.Tensor:
    return (model.w**2 - 1) ** 2


def test_double_well_in_closed_form():
    # L'' = 12 w² - 4; from -1 to 1 in t, D = 2.
    found = line_curvature(double_well, Curve(0.0), Curve(-1.0), Curve(1.0))
    assert found.curvatures == pytest.approx((32, -16, 32)) and found.slopes == pytest.approx((0, 0, 0))
    assert found.midpoint == pytest.approx(2.0)
    assert found.crossing == pytest.approx(4.0)  # both parabolas 16 t² meet at t = 1/2
    assert found.distance == 2 and found.losses == pytest.approx((0, 1, 0))


def test_parabolas_of_unequal_curvature_cross_where_the_formula_says():
    # a t² / 2 = b (1 - t)² / 2 at t = √b / (√a + √b), at the height a b / (2 (√a + √b)²).
    def loss_fn(m: Curve) -> torch.Tensor:
        return torch.minimum(2 * m.w**2, 9 * (m.w - 1) ** 2)

    found = line_curvature(loss_fn, Curve(0.0), Curve(0.0), Curve(1.0))
    a, b = 4.0, 18.0
    assert found.crossing == pytest.approx(a * b / (2 * (a**0.5 + b**0.5) ** 2), rel=1e-9)
    line = loss_line(loss_fn, Curve(0.0), Curve(0.0), Curve(1.0), points=1001)
    assert found.crossing == pytest.approx(line.barrier, rel=1e-2)


def tanh_pair() -> tuple:
    torch.manual_seed(0)
    model, end = (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(2))
    inputs, targets = torch.randn(30, 5, dtype=torch.float64), torch.randint(3, (30,))
    return model, end, lambda m: functional.cross_entropy(m(3 * inputs), targets)


def test_excess_is_the_integral_of_the_curvature_along_the_line():
    model, end, loss_fn = tanh_pair()
    measured = loss_line(loss_fn, model, model, end, points=33)
    told = line_curvature(loss_fn, model, model, end, points=33)
    assert told.losses == pytest.approx(measured.losses)
    largest = max(map(abs, measured.excess))
    assert told.excess == pytest.approx(measured.excess, abs=0.01 * largest)


def test_midpoint_estimate_errs_by_the_fourth_power_of_the_distance():
    model, end, loss_fn = tanh_pair()
    errors = []
    for share in (0.1, 0.05):
        ends = [copy.deepcopy(model) for _ in range(2)]
        for near, sign in zip(ends, (-1, 1), strict=True):
            for p, q in zip(near.parameters(), end.parameters(), strict=True):
                p.data += sign * share * q.data
        path = loss_line(loss_fn, model, *ends, points=3)
        errors.append(abs(path.excess[1] - line_curvature(loss_fn, model, *ends).midpoint))
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


def test_curvature_of_one_layer_and_of_frozen_weights():
    model, end, loss_fn = tanh_pair()
    path = loss_line(
        loss_fn, model, model, {**end.state_dict(), **{f"0.{n}": p for n, p in model[0].state_dict().items()}}
    )
    alone = line_curvature(loss_fn, model, model, end, layer="2", points=9)
    assert alone.losses[-1] == pytest.approx(path.losses[-1]) and alone.distance == pytest.approx(
        path.distance
    )
    assert min(alone.curvatures) > 0 and path.barrier == 0  # the last layer alone is a convex problem
    for p in model[0].parameters():
        p.requires_grad_(False)
    frozen = line_curvature(loss_fn, model, model, end, points=9)
    assert frozen.curvatures == pytest.approx(alone.curvatures) and frozen.losses == pytest.approx(
        alone.losses
    )
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="must have parameters that move and require a gradient"):
        line_curvature(loss_fn, model, model, end, layer="0")
