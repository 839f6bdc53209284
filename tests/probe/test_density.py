from __future__ import annotations

import pytest
import torch

from thalweg.probe import CurvatureOperator, hvp_operator, spectral_density


def exact_density(values: torch.Tensor, where: torch.Tensor, width: float) -> torch.Tensor:
    bumps = torch.distributions.Normal(values, width)
    return bumps.log_prob(where[:, None]).exp().mean(1)


@pytest.mark.parametrize("problem", ["mlp", "cnn"], indirect=True)
def test_unit_vectors_give_the_exact_density(problem):
    values = torch.linalg.eigvalsh(problem.hessian())
    operator = hvp_operator(problem.loss_fn, problem.params)
    n = operator.n
    found = spectral_density(operator, starts=torch.eye(n, dtype=torch.float64), iterations=n)
    where = torch.linspace(values[0] - 0.1, values[-1] + 0.1, 200, dtype=torch.float64)
    width = 0.02 * (values[-1] - values[0]).item()
    torch.testing.assert_close(
        found.at(where, width), exact_density(values, where, width), rtol=1e-7, atol=1e-9
    )
    # Between the eigenvalues, where rounding cannot move one across.
    gaps = torch.nonzero(values.diff() > 1e-4).flatten()
    middles = (values[gaps] + values[gaps + 1]) / 2
    share = (values[None] <= middles[:, None]).double().mean(1)
    torch.testing.assert_close(found.below(middles), share, rtol=0, atol=1e-9)


def test_random_starts_come_close_to_the_exact_density(mlp):
    values = torch.linalg.eigvalsh(mlp.hessian())
    operator = hvp_operator(mlp.loss_fn, mlp.params)
    found = spectral_density(operator, samples=80, iterations=20)
    where = torch.linspace(values[0] - 0.05, values[-1] + 0.05, 400, dtype=torch.float64)
    width = 0.05
    exact = exact_density(values, where, width)
    distance = 0.5 * torch.trapezoid((found.at(where, width) - exact).abs(), where)
    assert distance < 0.03  # total variation
    assert torch.trapezoid(found.at(where, width), where).item() == pytest.approx(1, abs=0.02)
    assert found.hvps == 80 * 20


def test_moments_are_trace_and_frobenius_norm_within_their_errors(mlp):
    explicit = mlp.hessian()
    found = spectral_density(hvp_operator(mlp.loss_fn, mlp.params), samples=100, iterations=5)
    for power, truth in ((1, explicit.trace()), (2, explicit.square().sum())):
        mean, error = found.moment(power)
        assert abs(found.n * mean - truth.item()) < 3 * found.n * error
        assert error < 0.15 * mean


def test_a_quadrature_is_exact_for_powers_below_twice_its_points(mlp):
    start = torch.randn(1, 51, dtype=torch.float64)
    explicit, unit = mlp.hessian(), start[0] / start.norm()
    found = spectral_density(hvp_operator(mlp.loss_fn, mlp.params), starts=start, iterations=4)
    for power in range(8):
        expected = (unit @ torch.linalg.matrix_power(explicit, power) @ unit).item()
        assert found.moment(power)[0] == pytest.approx(expected, rel=1e-9)
    assert found.moment(8)[0] != pytest.approx((unit @ torch.linalg.matrix_power(explicit, 8) @ unit).item())


def test_an_exhausted_space_ends_a_quadrature_with_its_own_weights():
    matrix = torch.diag(torch.tensor([5.0, 5.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    operator = CurvatureOperator(lambda v: matrix @ v, 6, matrix.new_empty(0), (torch.Size([6]),))
    found = spectral_density(operator, starts=torch.eye(6, dtype=torch.float64), iterations=6)
    assert found.hvps == 6  # each unit vector is an eigenvector
    assert found.below(torch.tensor([-1.0, 1.0, 6.0])).tolist() == pytest.approx([0, 4 / 6, 1])


def test_spectral_density_refuses(mlp):
    operator = hvp_operator(mlp.loss_fn, mlp.params)
    with pytest.raises(ValueError, match=r"starts must have shape \(samples, 51\), got \(2, 3\)"):
        spectral_density(operator, starts=torch.ones(2, 3))
    with pytest.raises(ValueError, match="iterations must be an integer >= 1, got 0"):
        spectral_density(operator, iterations=0)
    with pytest.raises(ValueError, match="width must be in"):
        spectral_density(operator, samples=1, iterations=2).at(torch.zeros(1), 0.0)
