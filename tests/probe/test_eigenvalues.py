from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.probe import lanczos


def symmetric(values: list[float], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


def start(n: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_all_iterations_give_the_whole_spectrum(n, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    found = lanczos(lambda v: matrix @ v, start(n, seed), n, 0.0)
    torch.testing.assert_close(found.eigenvalues.flip(0), torch.linalg.eigvalsh(matrix), rtol=1e-8, atol=1e-8)
    assert found.converged and found.products == n


def test_largest_algebraic_value_comes_first_although_negative_ones_are_larger():
    matrix = symmetric([-50.0, -20.0, 3.0, 1.0, 0.5, *[0.1] * 25])
    found = lanczos(lambda v: matrix @ v, start(30), 30, 1e-6)
    assert found.eigenvalues[0].item() == pytest.approx(3, rel=1e-5)


def test_residuals_are_the_true_residuals_and_bound_the_error():
    matrix = symmetric([10.0, 7.0, *torch.linspace(-5, 5, 38).tolist()])
    found = lanczos(lambda v: matrix @ v, start(40), 8, 0.0, wanted=2)
    for value, vector, residual in zip(
        found.eigenvalues[:2], found.vectors, found.residuals[:2], strict=True
    ):
        true = torch.linalg.vector_norm(matrix @ vector - value * vector).item()
        assert residual.item() == pytest.approx(true, rel=1e-6)
        assert torch.linalg.vector_norm(vector).item() == pytest.approx(1)
        assert (torch.linalg.eigvalsh(matrix) - value).abs().min().item() <= true


def test_float32_basis_stays_orthogonal_so_that_no_value_is_found_twice():
    matrix = symmetric([1000.0, 10.0, *torch.linspace(0, 1, 58).tolist()]).float()
    found = lanczos(lambda v: matrix @ v, start(60, dtype=torch.float32), 40, 0.0, wanted=2)
    # Without re-orthogonalisation a copy of 1000 would stand where 10 belongs.
    assert found.eigenvalues[:2].tolist() == pytest.approx([1000, 10], rel=1e-3)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-4])
def test_early_stop_keeps_the_tolerance(tol):
    matrix = symmetric([8.0, 6.0, 5.0, *torch.linspace(0, 4, 97).tolist()])
    found = lanczos(lambda v: matrix @ v, start(100), 100, tol)
    assert found.converged and found.products <= 15
    assert abs(found.eigenvalues[0].item() - 8) <= tol * 8


def test_least_keeps_a_start_near_a_smaller_eigenvector_from_stopping_early():
    diagonal = torch.tensor([5.0, 9.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    near = torch.tensor([1.0, 0.01, 0.01, 0.01, 0.01], dtype=torch.float64)
    hasty = lanczos(lambda v: diagonal * v, near, 5, 0.05)
    patient = lanczos(lambda v: diagonal * v, near, 5, 0.05, least=4)
    assert hasty.products == 1 and hasty.eigenvalues[0].item() == pytest.approx(5, rel=1e-2)
    assert patient.eigenvalues[0].item() == pytest.approx(9, rel=1e-2)


def test_breakdown_on_a_low_rank_matrix_stops_exactly():
    matrix = symmetric([5.0, 2.0, *[0.0] * 18])
    found = lanczos(lambda v: matrix @ v, start(20), 20, 0.0)
    assert found.products == 3
    assert found.eigenvalues[0].item() == pytest.approx(5, abs=1e-10)


def test_repeated_eigenvalues_are_found_by_starting_again():
    matrix = symmetric([5.0, 5.0, 2.0, *[0.0] * 9])
    found = lanczos(lambda v: matrix @ v, start(12), 12, 1e-8, wanted=3)
    assert found.eigenvalues[:3].tolist() == pytest.approx([5, 5, 2], abs=1e-9)
    identity = lanczos(lambda v: v, start(6), 6, 1e-8, wanted=2)
    assert identity.eigenvalues.tolist() == pytest.approx([1, 1]) and identity.products == 2


def test_zero_matrix_and_one_by_one():
    assert lanczos(lambda v: 0 * v, start(5), 5, 1e-2).eigenvalues.tolist() == [0]
    assert lanczos(lambda v: -4 * v, start(1), 5, 1e-2).eigenvalues.tolist() == pytest.approx([-4])


def test_a_callers_autocast_does_not_round_the_iteration():
    matrix = symmetric(torch.linspace(-1, 3, 60).tolist()).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = lanczos(lambda v: matrix @ v, start(60, dtype=torch.float32), 60, 0.0, wanted=60)
    assert found.vectors.dtype is torch.float32
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(60), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.eigenvalues.flip(0), torch.linspace(-1, 3, 60).double(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("scale", [1e-28, 1e-20, 1e20, 1e28])
def test_squares_that_leave_float32_do_no_harm(scale):
    matrix = symmetric(torch.linspace(-1, 3, 40).tolist()).float() * scale
    found = lanczos(lambda v: matrix @ v, start(40, dtype=torch.float32), 40, 1e-5, wanted=3)
    expected = [scale * value for value in torch.linspace(-1, 3, 40)[-3:].flip(0).tolist()]
    assert found.eigenvalues[:3].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("matvec", "vector", "arguments", "message"),
    [
        (lambda v: v, torch.zeros(3), {}, "start must be a finite vector that is not zero"),
        (lambda v: v, torch.ones(2, 2), {}, "start must be a finite vector"),
        (lambda v: v * float("nan"), torch.ones(3), {}, "non-finite one at product 1"),
        (lambda v: v[:2], torch.ones(3), {}, r"matvec must return shape \(3,\), got \(2,\)"),
        (lambda v: v, torch.ones(3), {"iterations": 0}, "iterations must be an integer >= 1, got 0"),
        (lambda v: v, torch.ones(3), {"tol": -1.0}, "tol must be in"),
        (lambda v: v, torch.ones(3), {"wanted": 0}, "wanted must be an integer >= 1, got 0"),
        (lambda v: v, torch.ones(3), {"least": 0}, "least must be an integer >= 1, got 0"),
    ],
)
def test_lanczos_refuses(matvec, vector, arguments, message):
    with pytest.raises(ValueError, match=message):
        lanczos(matvec, vector, **{"iterations": 3, "tol": 0.1, **arguments})
