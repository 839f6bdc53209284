from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import weight_growth


def test_growth_and_rotation_of_a_known_turn():
    angle = 0.3
    before = {"w": torch.tensor([2.0, 0.0], dtype=torch.float64)}
    after = {"w": 3 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)}
    found = weight_growth(after, before)
    assert found.norm["w"] == pytest.approx(3) and found.growth["w"] == pytest.approx(1.5)
    assert found.rotation["w"] == pytest.approx(angle, rel=1e-12)
    assert (found.total, found.total_growth) == (pytest.approx(3), pytest.approx(1.5))


@pytest.mark.parametrize("angle", [1e-12, math.pi - 1e-9, math.pi / 2])
def test_rotation_is_exact_where_the_cosine_is_blind(angle):
    before = {"w": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    after = {"w": torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)}
    assert weight_growth(after, before).rotation["w"] == pytest.approx(angle, rel=1e-6)


def test_totals_are_over_all_weights_of_a_model_and_extra_entries_do_not_count():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    found = weight_growth(model, before)
    assert set(found.norm) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert found.total == pytest.approx(flat.norm().item())
    assert found.total_growth == pytest.approx(2)
    assert found.growth["1.bias"] == 1 and found.growth["0.weight"] == pytest.approx(2)


def test_a_weight_that_was_zero_grew_without_bound():
    found = weight_growth({"w": torch.ones(2)}, {"w": torch.zeros(2)})
    assert found.growth["w"] == math.inf == found.total_growth and found.rotation["w"] == 0


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({}, r"before must hold 'w' with shape \(2,\), got none"),
        ({"w": torch.ones(3)}, r"got shape \(3,\)"),
        ({"w": torch.tensor([1.0, math.nan])}, "'w' must be finite"),
    ],
)
def test_weight_growth_refuses(before, message):
    with pytest.raises(ValueError, match=message):
        weight_growth({"w": torch.ones(2)}, before)


def test_of_complex_weights_both_parts_grow_and_turn():
    source = torch.Generator().manual_seed(0)
    now, then = (torch.randn(3, 4, dtype=torch.complex128, generator=source) for _ in range(2))
    found = weight_growth({"w": now}, {"w": then})
    assert found.norm["w"] == pytest.approx(now.abs().square().sum().sqrt().item(), rel=1e-12)
    cosine = (
        (now * then.conj()).real.sum() / now.abs().square().sum().sqrt() / then.abs().square().sum().sqrt()
    )
    assert found.rotation["w"] == pytest.approx(torch.acos(cosine).item(), rel=1e-9)
