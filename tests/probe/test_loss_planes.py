from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import filter_direction, loss_plane, random_plane
from thalweg.tasks import CNN, GPT


class Point(nn.Module):
    def __init__(self, *values: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_plane_through_three_points_is_to_scale():
    centre = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = loss_plane(
        lambda m: (m.w - centre).square().sum(),
        Point(0, 0, 0),
        Point(0, 0, 0),
        Point(0, 0, 4),
        Point(3, 4, 2),
        points=5,
        margin=0.0,
    )
    # x along (0, 0, 1), y along (3, 4, 0)/5.
    assert found.anchors["first"] == (0, 0) and found.anchors["second"] == (4, 0)
    assert found.anchors["third"] == pytest.approx((2, 5))
    assert found.x == pytest.approx((0, 1, 2, 3, 4)) and found.y == pytest.approx((0, 1.25, 2.5, 3.75, 5))
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            expected = (0.6 * y - 1) ** 2 + (0.8 * y - 2) ** 2 + (x - 3) ** 2
            assert found.losses[row, column].item() == pytest.approx(expected)


def test_plane_passes_through_its_checkpoints_with_statistics_recomputed():
    models = [CNN(3, width=4, seed=seed) for seed in range(3)]
    images, targets = torch.randn(12, 1, 8, 8), torch.randint(3, (12,))

    def loss_fn(m: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(m(images), targets)

    found = loss_plane(loss_fn, models[0], *models, points=2, margin=0.0, norm_batches=[images])
    for model, (row, column) in zip(models[:2], ((0, 0), (0, 1)), strict=True):
        other = copy.deepcopy(model)
        torch.optim.swa_utils.update_bn([images], other)
        assert found.losses[row, column].item() == pytest.approx(loss_fn(other.eval()).item(), rel=1e-4)


def test_three_points_on_a_line_make_no_plane():
    for third in (Point(3.0, 3.0), Point(0.0, 0.0)):
        with pytest.raises(ValueError, match="third must not lie on the line through first and second"):
            loss_plane(lambda m: 1.0, Point(0, 0), Point(0, 0), Point(1, 1), third)


def test_a_point_that_is_not_finite_makes_no_plane():
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
        loss_plane(lambda m: 1.0, Point(0, 0), Point(0, 0), Point(1, 0), Point(math.nan, 1))


def filters(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Length of what makes one output."""
    if isinstance(dict(model.named_modules())[name.rpartition(".")[0]], nn.ConvTranspose2d):
        tensor = tensor.transpose(0, 1)
    return torch.stack([row.reshape(-1).norm() for row in tensor])


def test_every_filter_of_a_direction_is_as_long_as_the_models_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 5, 2), nn.Linear(4, 6))
    model.add_module("4", nn.LayerNorm((4, 6)))
    model.add_module("5", nn.Embedding(9, 7))
    nn.init.zeros_(model[3].weight[1])
    direction = filter_direction(model)
    assert set(direction) == {name for name, _ in model.named_parameters()}
    for name in ("0.weight", "2.weight", "3.weight", "5.weight"):
        own = dict(model.named_parameters())[name]
        assert direction[name].shape == own.shape
        torch.testing.assert_close(filters(model, name, direction[name]), filters(model, name, own.detach()))
        assert not torch.allclose(direction[name], own)
    assert direction["3.weight"][1].tolist() == [0, 0, 0, 0]


def test_biases_and_norm_parameters_stay_or_are_scaled_as_one_vector():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.LayerNorm((3, 6)), nn.PReLU(init=0.3))
    nn.init.normal_(model[2].weight)
    still = ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight")
    zero, scaled = (filter_direction(model, vectors=kind) for kind in ("zero", "scale"))
    for name in still:
        own = dict(model.named_parameters())[name]
        assert not zero[name].any()
        assert scaled[name].norm().item() == pytest.approx(own.norm().item(), rel=1e-6)
    assert filter_direction(nn.Conv2d(1, 1, 1)).keys() == {"weight", "bias"}


def test_directions_repeat_unless_a_generator_is_given_and_leave_the_random_state():
    model, before = nn.Linear(3, 3), torch.get_rng_state()
    assert torch.equal(filter_direction(model)["weight"], filter_direction(model)["weight"])
    source = torch.Generator().manual_seed(0)
    first, second = (filter_direction(model, generator=source)["weight"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_plane_of_a_quadratic_in_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False).double()
    own = model.weight.detach().clone()
    found = random_plane(lambda m: (m.weight - own).square().sum(), model, radius=2.0, points=5)
    size, cosine = own.square().sum().item(), found.cosine
    assert found.x == found.y == (-2, -1, 0, 1, 2) and found.unit == "filter norms"
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            expected = size * (x * x + y * y + 2 * x * y * cosine)
            assert found.losses[row, column].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert abs(cosine) < 0.2 and torch.equal(model.weight, own)


def test_filters_take_their_length_from_the_centre():
    model, centre = nn.Linear(3, 2, bias=False), {"weight": torch.full((2, 3), 5.0)}
    found = random_plane(lambda m: (m.weight - 5).norm(), model, center=centre, points=3)
    assert found.losses[1, 2].item() == pytest.approx(math.sqrt(150), rel=1e-5)


def test_given_directions_are_taken_as_they_are():
    one, other = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}
    found = random_plane(lambda m: m.w[0] + 10 * m.w[1], Point(0, 0), directions=(one, other), points=3)
    assert found.losses.tolist() == [[-12, -11, -10], [-1, 0, 1], [10, 11, 12]]
    assert found.cosine == pytest.approx(0.5**0.5) and found.unit == "lengths of the direction"
    for directions, message in (
        ([one], "directions must hold two mappings, got 1"),
        ([one, {"v": torch.ones(2)}], r"directions\[1\]\['v'\] must have the shape of the parameter"),
        ([{"w": torch.ones(3)}, one], r"directions\[0\]\['w'\].*\(2,\); got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            random_plane(lambda m: 1.0, Point(0, 0), directions=directions)


def test_a_transformer_has_a_plane():
    model = GPT(7, 4, layers=1, heads=2, width=8, seed=0)
    tokens = torch.arange(8).view(2, 4) % 7

    def loss_fn(m: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(m(tokens).flatten(0, 1), tokens.flatten())

    found = random_plane(loss_fn, model, points=3)
    assert found.losses[1, 1].item() == pytest.approx(loss_fn(model).item(), rel=1e-6)
    assert bool(found.losses.isfinite().all()) and found.losses.std() > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": 1}, "points must be an integer >= 2, got 1"),
        ({"radius": 0}, r"radius must be in \(0, inf\), got 0"),
        ({"vectors": "keep"}, "vectors must be one of scale, zero; got 'keep'"),
    ],
)
def test_random_plane_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        random_plane(lambda m: 1.0, Point(1.0, 2.0), **changed)


class Masked(nn.Module):
    """Attention with its causal mask in a buffer, as many models write it."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((5, 5), -math.inf).triu(1))

    def forward(self, x):
        return ((x @ self.key(x).mT + self.mask).softmax(-1) @ self.value(x)).mean(1)


def test_a_mask_of_infinities_stays_beyond_the_checkpoints():
    models = [Masked(seed) for seed in range(3)]
    inputs, targets = torch.randn(8, 5, 4), torch.randint(3, (8,))

    def loss_fn(m: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(m(inputs), targets)

    host = Masked(9)
    host.mask.zero_()  # the checkpoints' counts
    found = loss_plane(loss_fn, host, *models, points=4, margin=0.5)
    assert bool(found.losses.isfinite().all()) and not bool(host.mask.any())
    # The first corner, at the coordinates of which the weights are written out.
    a, b, c = (dict(m.named_parameters()) for m in models)
    base, (along, height) = found.anchors["second"][0], found.anchors["third"]
    gamma = found.y[0] / height
    beta = (found.x[0] - gamma * along) / base
    with torch.no_grad():
        for name, p in (corner := Masked(0)).named_parameters():
            p.copy_((1 - beta - gamma) * a[name] + beta * b[name] + gamma * c[name])
        assert found.losses[0, 0].item() == pytest.approx(loss_fn(corner).item(), rel=1e-4)


def test_a_filter_of_gpt2s_linear_layer_is_a_column():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)
    conv1d.weight.data.mul_(torch.arange(1.0, 7.0))  # shape (4 inputs, 6 outputs)
    linear = nn.Linear(4, 6)
    linear.weight.data.copy_(conv1d.weight.T)
    for layer, dim in ((conv1d, 0), (linear, 1)):
        found = filter_direction(nn.Sequential(layer))["0.weight"].norm(dim=dim)
        torch.testing.assert_close(found, layer.weight.detach().norm(dim=dim))
