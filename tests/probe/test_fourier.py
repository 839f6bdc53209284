from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import fourier_basis, fourier_gini, key_frequencies


@pytest.mark.parametrize("modulus", [2, 7, 8])
def test_basis_is_orthonormal_and_its_rows_are_waves(modulus):
    basis = fourier_basis(modulus)
    torch.testing.assert_close(basis @ basis.T, torch.eye(modulus, dtype=torch.float64))
    assert basis[0].tolist() == pytest.approx([1 / math.sqrt(modulus)] * modulus)
    for k in range(1, (modulus - 1) // 2 + 1):
        size = math.sqrt(2 / modulus)
        angles = [2 * math.pi * k * x / modulus for x in range(modulus)]
        assert basis[2 * k - 1].tolist() == pytest.approx([size * math.cos(a) for a in angles], abs=1e-12)
        assert basis[2 * k].tolist() == pytest.approx([size * math.sin(a) for a in angles], abs=1e-12)
    if modulus % 2 == 0:
        assert basis[-1].tolist() == pytest.approx([(-1) ** x / math.sqrt(modulus) for x in range(modulus)])


def pairwise_gini(sizes: list[float]) -> float:
    """Mean absolute difference of all pairs over twice the mean: the other definition."""
    n = len(sizes)
    return sum(abs(a - b) for a in sizes for b in sizes) / (2 * n * sum(sizes))


def test_gini_equals_the_mean_difference_of_pairs():
    weight = torch.randn(11, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes = (fourier_basis(11) @ weight).norm(dim=1).tolist()
    assert fourier_gini(weight) == pytest.approx(pairwise_gini(sizes), rel=1e-12)
    assert fourier_gini(weight.T, dim=1) == pytest.approx(pairwise_gini(sizes), rel=1e-12)


def test_gini_is_highest_for_one_wave_and_zero_for_a_point():
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(13, dtype=torch.float64) / 13)
    assert fourier_gini(wave) == pytest.approx(1 - 1 / 13)
    # A single number has all its components of the same size where cosine and sine are taken together.
    assert fourier_gini(torch.eye(13)) == pytest.approx(0, abs=1e-6)


def waves_of(p: int, units: list[tuple[int, float]]) -> torch.Tensor:
    """One column a unit: relu of a wave of a plus one of b, at its frequency and phase, over all pairs."""
    a, b = torch.meshgrid(torch.arange(p).double(), torch.arange(p).double(), indexing="ij")
    columns = []
    for k, phase in units:
        speed = 2 * torch.pi * k / p
        columns.append(((speed * a + phase).cos() + (speed * b + phase).cos()).relu().flatten())
    return torch.stack(columns, dim=1)


class Table(nn.Module):
    """Answers with fixed activations, whatever it is asked."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table, self.act = table, nn.Identity()

    def forward(self, rows):
        return self.act(self.table[rows])


def literal_energy(column: torch.Tensor, p: int, k: int) -> float:
    """Share of the variance in products of the constant, cosine and sine rows, one product at a time."""
    basis = fourier_basis(p)
    rows = [basis[0], basis[2 * k - 1], *([basis[2 * k]] if 2 * k < p else [])]
    centred = column - column.mean()
    found = sum((torch.outer(f, g).flatten() @ centred).item() ** 2 for f in rows for g in rows)
    return found / centred.square().sum().item()


@pytest.mark.parametrize("p", [13, 12])
def test_units_prefer_the_frequency_they_are_made_of(p):
    units = [(2, 0.3), (2, 1.0), (2, 2.0), (5, 0.1), (5, 0.7), (6, 0.4)]
    table = torch.cat([waves_of(p, units), torch.full((p * p, 1), 7.0)], dim=1)
    found = key_frequencies(Table(table), torch.arange(p * p), p, "act", least_units=2 / 7)
    assert found.preferred.tolist() == [2, 2, 2, 5, 5, 6, 0]
    assert found.frequencies == (2, 5)
    assert found.units == {2: 3, 5: 2, 6: 1}
    expected = [literal_energy(table[:, unit], p, k) for unit, (k, _) in enumerate(units)]
    assert found.energy.tolist() == pytest.approx([*expected, 0])


def test_random_units_are_tuned_to_nothing():
    table = torch.randn(169, 20, generator=torch.Generator().manual_seed(0))
    found = key_frequencies(Table(table), torch.arange(169), 13, "act")
    assert found.frequencies == () and found.units == {}
    every = [[literal_energy(table[:, unit].double(), 13, k) for k in range(1, 7)] for unit in range(20)]
    assert found.energy.tolist() == pytest.approx([max(row) for row in every])
    assert found.preferred.tolist() == [row.index(max(row)) + 1 for row in every]


def test_rows_in_any_order_and_the_last_position():
    table = waves_of(7, [(1, 0.2), (3, 0.9)])
    rows = torch.randperm(49, generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([rows // 7, rows % 7], dim=1)
    positions = torch.stack([torch.zeros_like(table), table], dim=1)
    found = key_frequencies(Table(positions), rows, 7, "act", pairs=pairs)
    assert found.preferred.tolist() == [1, 3]
    # In a wrong order the waves are gone.
    assert max(key_frequencies(Table(table), rows, 7, "act").energy.tolist()) < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modulus": 1}, "modulus must be an integer >= 2, got 1"),
        ({"layer": "acts"}, "layer must be a module of the model, got 'acts'"),
        ({"least_energy": 2}, r"least_energy must be in \[0, 1\], got 2"),
        ({"least_units": -1}, r"least_units must be in \[0, 1\], got -1"),
        ({"inputs": torch.arange(48)}, r"must have shape \(49, units\).*got \(48, 2\)"),
        ({"pairs": torch.zeros(49, 2).long()}, r"pairs must hold every pair of numbers in \[0, 7\) once"),
        ({"pairs": torch.zeros(49, 2)}, r"integers of shape \(49, 2\), got torch\.float32"),
        ({"pairs": torch.zeros(48, 2).long()}, r"integers of shape \(49, 2\), got torch\.int64, \(48, 2\)"),
    ],
)
def test_key_frequencies_refuses(change, message):
    arguments = {"inputs": torch.arange(49), "modulus": 7, "layer": "act", **change}
    with pytest.raises(ValueError, match=message):
        key_frequencies(Table(waves_of(7, [(1, 0.0), (2, 0.0)])), **arguments)


def test_basis_and_gini_refuse():
    with pytest.raises(ValueError, match="modulus must be an integer >= 2, got 1"):
        fourier_basis(1)
    with pytest.raises(ValueError, match=r"dim must be a dimension of weight \(3, 4\), got 2"):
        fourier_gini(torch.ones(3, 4), dim=2)
    with pytest.raises(ValueError, match="weight must be finite and not zero"):
        fourier_gini(torch.zeros(3, 4))
