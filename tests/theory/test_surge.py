from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.theory import critical_batch_size, sign_descent, surge_law, surge_of_gradients, surge_of_rates

SIZES = np.array([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 16384.0])


def quadratic(d: int = 50, seed: int = 0):
    """Gradients with a common sign, and curvature that is aligned with them."""
    rng = np.random.default_rng(seed)
    mu, sigma = 0.03 + 0.02 * rng.standard_normal(d), np.exp(0.3 * rng.standard_normal(d))
    a = rng.standard_normal((d, d)) / math.sqrt(d)
    aligned = mu / sigma / np.linalg.norm(mu / sigma)
    return mu, sigma, a @ a.T + d * np.outer(aligned, aligned)


def literal_rate(mu, sigma, hessian, size: float) -> float:
    """The formula, coordinate by coordinate."""
    e = [math.erf(math.sqrt(size / 2) * m / s) for m, s in zip(mu, sigma, strict=True)]
    top = sum(a * m for a, m in zip(e, mu, strict=True))
    bottom = sum((1 - a * a) * hessian[i][i] for i, a in enumerate(e))
    bottom += sum(e[i] * e[j] * hessian[i][j] for i in range(len(e)) for j in range(len(e)))
    return top / bottom


def literal_surge(size: float, peak: float, scale: float) -> float:
    return peak / (0.5 * (math.sqrt(scale / size) + math.sqrt(size / scale)))


def test_exact_rate_is_the_literal_sum():
    mu, sigma, hessian = quadratic(12)
    found = sign_descent(mu, sigma, hessian, SIZES)
    np.testing.assert_allclose(
        found.rates, [literal_rate(mu, sigma, hessian, size) for size in SIZES], rtol=1e-12
    )
    assert found.plateau == pytest.approx(literal_rate(mu, sigma, hessian, 1e12), rel=1e-9)
    expected = np.abs(mu).sum() / (np.sign(mu) @ hessian @ np.sign(mu))
    assert found.plateau == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_rate_and_gain_are_those_of_sampled_batches(size):
    mu, sigma, hessian = quadratic(6, seed=2)
    mu = 10 * mu
    rng = np.random.default_rng(1)
    batch = mu + sigma / math.sqrt(size) * rng.standard_normal((400_000, 6))
    signs = np.sign(batch)
    slope, curved = (signs @ mu).mean(), np.einsum("ni,ij,nj->n", signs, hessian, signs).mean()
    found = sign_descent(mu, sigma, hessian, [size])
    assert found.rates[0] == pytest.approx(slope / curved, rel=0.03)
    falls = {c: c * found.rates[0] * slope - (c * found.rates[0]) ** 2 * curved / 2 for c in (0.5, 1, 1.5)}
    assert found.gains[0] == pytest.approx(falls[1], rel=0.03)
    assert falls[0.5] == pytest.approx(0.75 * found.gains[0], rel=0.03)
    assert max(falls, key=falls.__getitem__) == 1


def test_the_law_is_the_exact_rate_below_the_peak_and_has_its_peak_there():
    mu, sigma, hessian = quadratic()
    law = surge_of_gradients(mu, sigma, hessian)
    below = np.array([size for size in SIZES if size < law.noise_scale / 4])
    assert len(below) >= 2
    np.testing.assert_allclose(
        law.predict(below).rates, sign_descent(mu, sigma, hessian, below).rates, rtol=0.03
    )
    grid = np.geomspace(law.noise_scale / 100, law.noise_scale * 100, 401)
    exact = sign_descent(mu, sigma, hessian, grid).rates
    assert grid[exact.argmax()] == pytest.approx(law.noise_scale, rel=0.3)
    assert law.plateau < exact.max() and exact.max() == pytest.approx(law.peak_rate, rel=0.05)


def test_noise_scale_and_peak_are_the_sums_of_the_paper():
    mu, sigma, hessian = quadratic(7, seed=3)
    pairs = sum(
        mu[i] * mu[j] * hessian[i, j] / (sigma[i] * sigma[j]) for i in range(7) for j in range(7) if i != j
    )
    scale = math.pi * np.trace(hessian) / (2 * pairs)
    peak = math.sqrt(scale / (2 * math.pi)) * (mu**2 / sigma).sum() / np.trace(hessian)
    law = surge_of_gradients(mu, sigma, hessian)
    assert (law.noise_scale, law.peak_rate) == pytest.approx((scale, peak), rel=1e-12)


def test_rates_are_the_closed_form_flagged_beyond_the_peak_and_not_below_the_plateau():
    law = surge_of_gradients(*quadratic())
    sizes = law.noise_scale * np.array([0.01, 1.0, 100.0, 1e6])
    found = law.predict(sizes)
    expected = [literal_surge(size, law.peak_rate, law.noise_scale) for size in sizes]
    np.testing.assert_allclose(found.rates[:2], expected[:2], rtol=1e-12)
    assert found.rates[1] == pytest.approx(law.peak_rate)
    assert found.rates[3] == law.plateau > expected[3]
    assert found.beyond_peak.tolist() == [False, False, True, True]
    assert not found.errors.any()


def test_with_curvature_that_does_not_couple_there_is_no_peak():
    mu, sigma, hessian = quadratic()
    diagonal = np.diag(np.diag(hessian))
    rates = sign_descent(mu, sigma, diagonal, SIZES).rates
    assert (np.diff(rates) > 0).all()
    with pytest.raises(ValueError, match="hessian must couple coordinates along the gradient"):
        surge_of_gradients(mu, sigma, diagonal)


def test_a_grid_of_exact_rates_gives_the_law_back_and_noisy_ones_with_their_error():
    sizes = np.geomspace(4, 4096, 11)
    exact = np.array([literal_surge(size, 3e-3, 200) for size in sizes])
    found = surge_of_rates(sizes, exact)
    assert (found.peak_rate, found.noise_scale) == pytest.approx((3e-3, 200), rel=1e-9)
    rng = np.random.default_rng(0)
    laws = [surge_of_rates(sizes, exact * np.exp(0.1 * rng.standard_normal(11))) for _ in range(300)]
    logs = np.log([[law.peak_rate, law.noise_scale] for law in laws])
    stated = np.sqrt(np.mean([np.diag(law.covariance) for law in laws], axis=0))
    assert stated == pytest.approx(logs.std(axis=0), rel=0.15)
    ends = np.log([law.predict([8]).rates[0] for law in laws])
    errors = np.sqrt(np.mean([law.predict([8]).errors[0] ** 2 for law in laws]))
    assert errors == pytest.approx(ends.std(), rel=0.15)


def test_with_a_known_noise_scale_the_peak_is_the_mean_over_the_grid():
    sizes, rates = np.array([16.0, 64.0]), np.array([1e-3, 2e-3])
    found = surge_of_rates(sizes, rates, noise_scale=100)
    expected = np.mean(rates / 2 * (np.sqrt(100 / sizes) + np.sqrt(sizes / 100)))
    assert found.peak_rate == pytest.approx(expected, rel=1e-12)
    assert found.covariance[0, 0] > 0 == found.covariance[1, 1]


def test_readings_give_the_noise_scale_of_the_data_and_its_error():
    """Signal and noise as a probe estimates them from batches of normal gradients with known moments."""
    rng = np.random.default_rng(3)
    mu, sigma = np.full(20, 0.5), np.linspace(1, 2, 20)
    truth = (sigma**2).sum() / (mu**2).sum()

    def reading(size: int) -> tuple[float, float]:
        g = mu + sigma * rng.standard_normal((size, 20))
        each, whole = (g**2).sum(1).mean(), (g.mean(0) ** 2).sum()
        return (size * whole - each) / (size - 1), size * (each - whole) / (size - 1)

    laws = []
    for _ in range(200):
        sizes = [8] * 20 + [32] * 20
        signals, noises = zip(*map(reading, sizes), strict=True)
        laws.append(surge_law(sizes, signals, noises, known_batch_size=2, known_rate=1e-3))
    scales = np.array([law.noise_scale for law in laws])
    assert np.median(scales) == pytest.approx(truth, rel=0.02)
    stated = np.sqrt(np.mean([law.covariance[1, 1] for law in laws]))
    assert stated == pytest.approx(np.log(scales).std(), rel=0.2)
    for law in laws[:5]:
        at = law.predict([2, 8])
        assert at.rates[0] == pytest.approx(1e-3) and at.errors[0] == pytest.approx(0, abs=1e-9)
        assert at.rates[1] == pytest.approx(
            1e-3 * literal_surge(8, 1, law.noise_scale) / literal_surge(2, 1, law.noise_scale)
        )
    ends = np.log([law.predict([8]).rates[0] for law in laws])
    assert np.mean([law.predict([8]).errors[0] for law in laws]) == pytest.approx(ends.std(), rel=0.2)


def test_momentum_moves_the_peak_to_smaller_batches():
    readings = ([8, 8], [1.0, 1.2], [100.0, 90.0])
    plain = surge_law(*readings, known_batch_size=8, known_rate=1e-3)
    smooth = surge_law(*readings, known_batch_size=8, known_rate=1e-3, momentum=0.9)
    assert plain.noise_scale == pytest.approx(190 / 2.2) and smooth.noise_scale == pytest.approx(10 / 2.2)


def test_critical_batch_size_of_exact_and_of_noisy_runs():
    sizes = np.array([8, 32, 128, 512, 2048.0])
    steps = 500 * (1 + 150 / sizes)
    found = critical_batch_size(sizes, steps)
    expected = (150, 500, 75_000)
    assert (found.critical, found.min_steps, found.min_examples) == pytest.approx(expected, rel=1e-9)
    assert found.scatter == pytest.approx(0, abs=1e-9)
    examples = sizes * steps
    product = (steps / found.min_steps - 1) * (examples / found.min_examples - 1)
    np.testing.assert_allclose(product, 1, rtol=1e-8)
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal((200, 5)))
    many = [critical_batch_size(sizes, steps * factor) for factor in noise]
    assert np.median([m.critical for m in many]) == pytest.approx(150, rel=0.03)
    assert np.mean([m.scatter for m in many]) == pytest.approx(0.05, rel=0.15)
    assert critical_batch_size(sizes, 1e4 / sizes).critical > 1e6
    assert critical_batch_size(sizes, [100] * 5).critical == pytest.approx(0, abs=1e-6)


GOOD = {
    "batch_sizes": [8, 8],
    "signals": [1, 1],
    "noises": [9, 9],
    "known_batch_size": 8,
    "known_rate": 1e-3,
}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surge_law(**{**GOOD, "signals": [1]}), "one length of at least 2, got 2, 1 and 2"),
        (lambda: surge_law(**{**GOOD, "signals": [1, -2]}), "signals must be above 0 on average .* got -0.5"),
        (lambda: surge_law(**{**GOOD, "batch_sizes": [8, 0]}), "batch_sizes must be finite and above 0"),
        (lambda: surge_law(**{**GOOD, "momentum": 1}), r"momentum must be in \[0, 1\), got 1"),
        (lambda: surge_law(**{**GOOD, "known_rate": 0}), "known_rate must be in"),
        (lambda: surge_of_rates([1, 2], [1, 2]), "one length and 3 different sizes, got 2 and 2"),
        (lambda: surge_of_rates([1, 2, 4], [1, 2, 4]), "rates must bend below growth by the square root"),
        (lambda: surge_of_rates([1, 2, 4], [4, 2, 1]), "rates must rise with batch_sizes somewhere"),
        (lambda: surge_of_rates([1, 2], [1, 2], noise_scale=0), "noise_scale must be in"),
        (lambda: sign_descent([1, 1], [1], np.eye(2), [1]), "deviation must have one entry for each of 2"),
        (lambda: sign_descent([1], [1], np.eye(2), [1]), r"hessian must have shape \(1, 1\), got \(2, 2\)"),
        (lambda: sign_descent([1], [0], np.eye(1), [1]), "deviation must be finite and above 0, got 0"),
        (lambda: sign_descent([1, 1], [1, 1], [[1, 2], [0, 1]], [1]), "hessian must be finite and symmetric"),
        (lambda: sign_descent([1], [1], [[-1]], [1]), "hessian must curve up along the steps, got -1"),
        (lambda: surge_of_gradients([0, 0], [1, 1], np.eye(2)), "mean must not be 0 in every coordinate"),
        (lambda: critical_batch_size([1, 1, 2], [3, 2, 1]), "3 different sizes, got 3 and 3 with 2 sizes"),
        (lambda: critical_batch_size([1, 2, 3], [3, 2, 0]), "steps must be finite and above 0, got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
