"""The axioms of the PQ index, its two ends, and its bound on every number of kept weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thalweg.surgery import pq_index, retained_bound

POWERS = [(0.5, 1.0), (0.1, 2.0), (1.0, 2.0)]


def vector(seed, size=40):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("p", "q"), POWERS)
def test_it_is_the_ratio_of_norms(p, q):
    w = vector(0).abs().numpy()
    norms = (w**p).sum() ** (1 / p) / (w**q).sum() ** (1 / q)
    assert pq_index(torch.from_numpy(w), p, q) == pytest.approx(1 - 40 ** (1 / q - 1 / p) * norms, rel=1e-12)


@pytest.mark.parametrize(("p", "q"), POWERS)
def test_scaling_and_cloning_change_nothing(p, q):
    w = vector(1)
    for other in (1e-30 * w, -7 * w, torch.cat([w, w]), w.view(5, 8)):
        assert pq_index(other, p, q) == pytest.approx(pq_index(w, p, q), rel=1e-9)


@pytest.mark.parametrize(("p", "q"), POWERS)
def test_giving_to_the_small_and_to_all_lowers_it_and_zeros_raise_it(p, q):
    w = vector(2).abs().sort().values
    moved = w.clone()
    moved[-1] -= 0.2
    moved[0] += 0.2
    assert pq_index(moved, p, q) < pq_index(w, p, q)
    assert pq_index(w + 0.5, p, q) < pq_index(w, p, q)
    assert pq_index(torch.cat([w, torch.zeros(3)]), p, q) > pq_index(w, p, q)


@pytest.mark.parametrize(("p", "q"), POWERS)
def test_its_ends(p, q):
    assert pq_index(torch.tensor([3.0, -3, 3]), p, q) == pytest.approx(0, abs=1e-12)
    single = torch.zeros(50)
    single[7] = -2
    assert pq_index(single, p, q) == pytest.approx(1 - 50 ** (1 / q - 1 / p), rel=1e-12)
    assert pq_index(torch.zeros(4), p, q) == pq_index(torch.zeros(0), p, q) == 0


def test_many_large_entries_in_single_precision_overflow_nothing():
    assert pq_index(torch.full((1000,), 3e38)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("p", "q"), POWERS)
@pytest.mark.parametrize("seed", range(4))
def test_no_number_of_kept_weights_beats_the_bound_at_its_own_eta(p, q, seed):
    w = np.sort(vector(seed, 25).abs().numpy())[::-1] ** (seed + 1)
    index = pq_index(torch.from_numpy(w.copy()), p, q)
    for m in range(1, 26):
        eta = (w[m:] ** p).sum() / (w[:m] ** p).sum()
        assert m >= retained_bound(25, index, p=p, q=q, eta=eta) - 1e-9


def test_the_bound_is_met_where_kept_weights_are_equal():
    w = torch.cat([torch.full((6,), 2.0), torch.zeros(10)])
    assert retained_bound(16, pq_index(w)) == pytest.approx(6)
    assert retained_bound(100, 0.3, eta=0.5) == pytest.approx(100 * 0.7 / 1.5**2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pq_index(torch.ones(2), 1.0, 1.0), "p must be below q = 1, got 1"),
        (lambda: pq_index(torch.ones(2), 0.0, 1.0), r"p must be in \(0, inf\), got 0.0"),
        (lambda: pq_index(torch.tensor([torch.nan])), "weights must be finite"),
        (lambda: retained_bound(3, 1.5), r"index must be in \[0, 1\], got 1.5"),
        (lambda: retained_bound(3, 0.5, eta=-1), r"eta must be in \[0, inf\), got -1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
