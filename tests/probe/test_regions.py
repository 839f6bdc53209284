from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import local_complexity
from thalweg.probe.regions import _directions
from thalweg.tasks import CNN, GPT, MLP


def points(n: int, *shape: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(5)
    return torch.randn(n, *shape, generator=source, dtype=torch.float64)


def literal(model: nn.Sequential, x: torch.Tensor, directions: torch.Tensor, radius: float) -> dict[str, int]:
    """One point, one vertex at a time: units of each activation whose sign is not the first vertex's."""
    first: dict[str, torch.Tensor] = {}
    switched: dict[str, torch.Tensor] = {}
    for move in [*directions, *(-directions)]:
        h = (x + radius * move.view_as(x))[None]
        for name, module in model.named_children():
            if isinstance(module, nn.ReLU):
                sign = h[0].flatten().sign()
                first.setdefault(name, sign)
                switched[name] = switched.get(name, torch.zeros_like(sign, dtype=torch.bool)) | (
                    sign != first[name]
                )
            h = module(h)
    return {name: int(mask.sum()) for name, mask in switched.items()}


def test_first_layer_counts_the_hyperplanes_that_cut_the_polytope():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2)).double(), points(50, 6)
    found = local_complexity(model, x, radius=0.3, vertices=8, seed=2)
    directions = _directions(6, 4, 2, x)
    torch.testing.assert_close(directions @ directions.T, torch.eye(4, dtype=torch.float64))
    reach = 0.3 * (model[0].weight @ directions.T).abs().amax(1)
    cut = (model[0](x).abs() <= reach).sum(1)
    assert found.points.tolist() == cut.tolist() and 0 < cut.double().mean() < 40
    assert found.total == found.layers["1"] == pytest.approx(cut.double().mean().item())
    assert found.density["1"] == pytest.approx(found.total / 40)


def test_all_directions_make_the_polytope_of_the_ball_in_the_one_norm():
    """With as many directions as dimensions, turned to the axes: |w x + b| <= r max_j |w_j|."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 30), nn.ReLU()).double(), points(40, 3)
    turned = _directions(3, 3, 0, x)
    weight = model[0].weight @ turned.T
    expected = (model[0](x).abs() <= 0.2 * weight.abs().amax(1)).sum(1)
    assert local_complexity(model, x, radius=0.2, vertices=6).points.tolist() == expected.tolist()


def test_deep_layers_equal_the_literal_count():
    model, x = MLP((5, 12, 12, 12, 3), seed=0).double(), points(7, 5)
    found = local_complexity(model, x, radius=0.5, vertices=10, chunk=3)
    directions = _directions(5, 5, 0, x)
    counts = [literal(model, point, directions, 0.5) for point in x]
    for name in ("1", "3", "5"):
        assert found.layers[name] == pytest.approx(sum(count[name] for count in counts) / 7)
    assert found.points.tolist() == [sum(count.values()) for count in counts]


def test_a_convolution_has_a_unit_at_every_place_and_batch_norm_is_in_evaluation():
    model = CNN(classes=3, width=2, seed=0).double()
    model(points(8, 1, 8, 8))
    model.train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    x = points(3, 1, 8, 8)
    found = local_complexity(model, x, radius=0.5, vertices=12, seed=1)
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers()) and model.training
    model.eval()
    counts = [literal(model, point, _directions(64, 6, 1, x), 0.5) for point in x]
    assert found.points.tolist() == [sum(count.values()) for count in counts]
    assert found.density["2"] == pytest.approx(sum(count["2"] for count in counts) / 3 / 128)


def test_linear_layers_before_function_calls_are_found_or_named():
    torch.manual_seed(0)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 20), nn.Linear(20, 2)

        def forward(self, x):
            return self.out(functional.relu(self.hidden(x)))

    model, x = Functional().double(), points(10, 4)
    reach = 0.1 * (model.hidden.weight @ _directions(4, 2, 0, x).T).abs().amax(1)
    found = local_complexity(model, x, radius=0.1, vertices=4, layers=["hidden"])
    assert found.points.tolist() == (model.hidden(x).abs() <= reach).sum(1).tolist()
    assert local_complexity(model, x, radius=0.1, vertices=4).layers == found.layers


def test_a_model_of_tokens_is_probed_about_its_embeddings():
    model = GPT(9, context=4, layers=1, heads=2, width=8, seed=0).double()
    with torch.no_grad():
        model.blocks[0].feed_forward.expand.weight *= 30
    tokens = torch.randint(9, (5, 4), generator=torch.Generator().manual_seed(0))
    found = local_complexity(model, tokens, radius=0.01, vertices=6, at="tokens", chunk=2)
    layer, signs = model.blocks[0].feed_forward.expand, []
    embedded = model.tokens(tokens).detach()
    directions = _directions(32, 3, 0, embedded).view(3, 4, 8)
    for move in [*directions, *(-directions)]:
        block = model.blocks[0]
        h = embedded + 0.01 * move + model.positions.weight
        h = h + block.attention(block.attention_norm(h))
        signs.append(layer(block.feed_forward_norm(h)).flatten(1).sign())
    switched = torch.stack([sign != signs[0] for sign in signs]).any(0).sum(1)
    assert found.points.tolist() == switched.tolist() and found.total > 0
    assert model.tokens._forward_hooks == {}


def test_more_room_never_switches_fewer_units_of_the_first_layer():
    model, x = MLP((6, 30, 2), seed=0).double(), points(20, 6)
    totals = [local_complexity(model, x, radius=r, vertices=12).total for r in (1e-6, 0.1, 0.5, 100.0)]
    assert totals[0] == 0 and totals == sorted(totals) and totals[-1] > 29


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.ones(2, 3), {"radius": 0}, "radius must be in"),
        (torch.ones(2, 3), {"vertices": 7}, "vertices must be even and at most 6, twice the size, got 7"),
        (torch.ones(2, 3), {"vertices": 8}, "vertices must be even and at most 6"),
        (torch.ones(2, 3, dtype=torch.long), {}, "points must be a float tensor .* got torch.int64"),
        (torch.full((2, 3), torch.nan), {}, "points must be finite"),
        (torch.ones(2, 3), {"at": "9"}, "got '9'"),
    ],
)
def test_local_complexity_refuses(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        local_complexity(MLP((3, 4, 2), seed=0), x, **{"radius": 0.1, "vertices": 4, **arguments})


@pytest.mark.parametrize(
    ("dtype", "offset", "radius"), [(torch.bfloat16, 0.0, 0.003), (torch.float32, 1e5, 0.003)]
)
@pytest.mark.parametrize("at", [None, "0"])
def test_a_radius_that_rounding_swallows_is_refused(dtype, offset, radius, at):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(20, 30), nn.ReLU()).to(dtype)
    with torch.no_grad():
        model[1].bias -= model[1].weight @ torch.full((20,), offset, dtype=dtype)
    x = torch.randn(6, 20) + offset
    with pytest.raises(ValueError, match=rf"radius must be larger than what {dtype} rounds.*got 0.003"):
        local_complexity(model, x.to(dtype), radius=radius, at=at)
    wide = local_complexity(model.double(), x.double(), radius=radius, at=at)
    assert 0 < wide.total < 10
    assert local_complexity(model.to(dtype), x.to(dtype), radius=1000 * radius, at=at).total > wide.total
