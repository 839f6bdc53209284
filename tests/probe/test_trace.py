from __future__ import annotations

import statistics

import pytest
import torch

from thalweg.probe import CurvatureOperator, hutchinson, hvp_operator, xtrace


def operator_of(matrix: torch.Tensor, *shapes: tuple[int, ...]) -> CurvatureOperator:
    sizes = tuple(map(torch.Size, shapes or ((len(matrix),),)))
    return CurvatureOperator(lambda v: matrix @ v, len(matrix), matrix.new_empty(0), sizes)


def with_spectrum(values: torch.Tensor) -> torch.Tensor:
    n = len(values)
    source = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(n, n, generator=source, dtype=torch.float64))[0]
    return basis @ torch.diag(values.double()) @ basis.T


def generators(count: int):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


FAST = with_spectrum(torch.exp(-torch.arange(100) / 4))
MIXED = with_spectrum(torch.linspace(-1, 2, 100))


@pytest.mark.parametrize("matrix", [FAST, MIXED], ids=["fast", "mixed"])
def test_estimates_of_trace_and_norm_are_unbiased_and_their_errors_true(matrix):
    found = [hutchinson(operator_of(matrix), 20, generator=g) for g in generators(150)]
    crossed = [xtrace(operator_of(matrix), 20, generator=g) for g in generators(150)]
    trace, square = matrix.trace().item(), matrix.square().sum().item()
    for truth, values, errors in (
        (trace, [f.trace for f in found], [f.trace_error for f in found]),
        (square, [f.frobenius_squared for f in found], [f.frobenius_squared_error for f in found]),
        (trace, [c.trace for c in crossed], [c.error for c in crossed]),
    ):
        deviation = statistics.stdev(values)
        assert abs(statistics.fmean(values) - truth) < 3.5 * deviation / 150**0.5
        assert 0.6 < statistics.fmean(errors) / deviation < 1.5


def test_hutchinson_deviation_is_the_formula_for_signs():
    off_diagonal = MIXED - torch.diag(MIXED.diagonal())
    expected = (2 * off_diagonal.square().sum() / 20) ** 0.5
    values = [hutchinson(operator_of(MIXED), 20, generator=g).trace for g in generators(300)]
    assert statistics.stdev(values) == pytest.approx(expected.item(), rel=0.12)


def test_a_diagonal_matrix_has_its_trace_and_norm_from_two_samples():
    diagonal = torch.diag(torch.tensor([3.0, -1.0, 2.0, 5.0], dtype=torch.float64))
    found = hutchinson(operator_of(diagonal, (1, 2), (2,)), 2)
    assert (found.trace, found.trace_error) == (9, 0)
    assert found.per_parameter == (2, 7)
    assert found.frobenius_squared == 39 and found.frobenius == pytest.approx(39**0.5)


def test_traces_of_layers_are_those_of_the_diagonal_blocks(problem):
    operator = hvp_operator(problem.loss_fn, problem.params)
    found = hutchinson(operator, 600)
    blocks = problem.hessian().diagonal().split([p.numel() for p in problem.params])
    truth = torch.stack([block.sum() for block in blocks])
    scale = problem.hessian().norm().item()
    assert found.per_parameter == pytest.approx(truth.tolist(), abs=4 * scale * (2 / 600) ** 0.5)
    assert sum(found.per_parameter) == pytest.approx(found.trace)


def test_xtrace_is_exact_on_low_rank_and_with_as_many_test_vectors_as_dimensions():
    low = with_spectrum(torch.cat([torch.tensor([5.0, -2.0, 1.0]), torch.zeros(37)]))
    found = xtrace(operator_of(low), 20)
    assert found.trace == pytest.approx(4, abs=1e-10) and found.error == 0 and found.hvps == 13
    small = with_spectrum(torch.linspace(-1, 3, 6))
    assert xtrace(operator_of(small), 30).trace == pytest.approx(6)
    assert xtrace(operator_of(torch.zeros(5, 5)), 4).trace == 0


def test_xtrace_equals_the_explicit_leave_one_out_estimates():
    n, k = 30, 6
    matrix = with_spectrum(torch.linspace(-1, 4, n))
    source = torch.Generator().manual_seed(0)
    tests = torch.stack([torch.randn(n, generator=source) for _ in range(k)], 1).double()
    estimates = []
    for left_out in range(k):
        others = [i for i in range(k) if i != left_out]
        basis = torch.linalg.qr(matrix @ tests[:, others])[0]
        rest = tests[:, left_out] - basis @ (basis.T @ tests[:, left_out])
        scaled = (n - k + 1) * (rest @ matrix @ rest) / (rest @ rest)
        estimates.append(((basis.T @ matrix @ basis).trace() + scaled).item())
    found = xtrace(operator_of(matrix), 2 * k)
    assert found.trace == pytest.approx(statistics.fmean(estimates), rel=1e-9)
    assert found.error == pytest.approx(statistics.stdev(estimates) / k**0.5, rel=1e-9)


def test_xtrace_beats_hutchinson_tenfold_on_a_falling_spectrum_at_equal_cost():
    truth = FAST.trace().item()
    ours = statistics.fmean(
        abs(xtrace(operator_of(FAST), 40, generator=g).trace - truth) for g in generators(40)
    )
    plain = statistics.fmean(
        abs(hutchinson(operator_of(FAST), 40, generator=g).trace - truth) for g in generators(40)
    )
    assert ours < plain / 10


@pytest.mark.parametrize("scale", [1e-27, 1e27])
def test_autocast_and_the_range_of_float32_change_no_estimate(scale):
    # A norm is within float64 where its square is far outside float32.
    operator, wide = operator_of(FAST.float() * scale), operator_of(FAST)
    with torch.autocast("cpu", torch.bfloat16):
        found, other = hutchinson(operator, 10), xtrace(operator_of(FAST.float()), 40)
    assert found.frobenius == pytest.approx(scale * hutchinson(wide, 10).frobenius, rel=0.02)
    assert other.trace == pytest.approx(xtrace(operator_of(FAST.float()), 40).trace, rel=2e-3)


def test_readings_repeat_and_leave_the_global_random_state(mlp):
    before = torch.get_rng_state()
    operator = hvp_operator(mlp.loss_fn, mlp.params)
    assert hutchinson(operator, 3) == hutchinson(operator, 3)
    assert xtrace(operator, 6) == xtrace(operator, 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_estimators_refuse():
    operator = operator_of(MIXED)
    with pytest.raises(ValueError, match="samples must be an integer >= 2, got 1"):
        hutchinson(operator, 1)
    with pytest.raises(ValueError, match="products must be an integer >= 4, got 2"):
        xtrace(operator, 2)
    with pytest.raises(ValueError, match="products must be even, got 7"):
        xtrace(operator, 7)
