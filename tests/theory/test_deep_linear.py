from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from thalweg.theory import decoupled_weights, layer_imbalance, linear_modes, mode_curve, mode_time


def task(strengths=(4.0, 2.0, 1.0), d: int = 8, out: int = 6, seed: int = 0):
    """Inputs that are white in sum, targets with the given singular values."""
    rng = np.random.default_rng(seed)
    x = np.linalg.qr(rng.standard_normal((30, d)))[0]
    u = np.linalg.qr(rng.standard_normal((out, len(strengths))))[0]
    v = np.linalg.qr(rng.standard_normal((d, len(strengths))))[0]
    return x, x @ (u * np.array(strengths) @ v.T).T


def flow(weights, x, y, t: float, steps: int):
    """Gradient flow of half the summed squared error, by Runge-Kutta steps on the matrices themselves."""

    def slope(ws):
        forward = [x]
        for w in ws:
            forward.append(forward[-1] @ w.T)
        back, slopes = y - forward[-1], []
        for w, seen in zip(reversed(ws), reversed(forward[:-1]), strict=True):
            slopes.insert(0, back.T @ seen)
            back = back @ w
        return slopes

    def moved(ws, slopes, h):
        return [w + h * s for w, s in zip(ws, slopes, strict=True)]

    h, ws = t / steps, [w.copy() for w in weights]
    for _ in range(steps):
        a = slope(ws)
        b = slope(moved(ws, a, h / 2))
        c = slope(moved(ws, b, h / 2))
        d = slope(moved(ws, c, h))
        ws = [
            w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4) for w, k1, k2, k3, k4 in zip(ws, a, b, c, d, strict=True)
        ]
    return ws


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_every_mode_of_a_simulated_network_follows_its_curve(depth):
    x, y = task((2.0, 1.4, 0.9))
    modes = linear_modes(x, y)
    start = [0.05, 0.1, 0.2]
    weights = decoupled_weights(modes, [7, 3, 9, 5, 8, 4, 6][: depth - 1], start, seed=1)
    assert len(weights) == depth
    np.testing.assert_allclose(modes.measured(weights), start, rtol=1e-10)
    for t in (0.3, 1.0, 2.5):
        found = modes.measured(flow(weights, x, y, t, 400))
        expected = [
            mode_curve(s, u, [t], depth=depth)[0] for s, u in zip(modes.strengths, start, strict=True)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 10, 40])
@pytest.mark.parametrize(("strength", "start"), [(3.0, 0.01), (0.4, 0.3), (1.0, 1e-4)])
def test_curve_solves_its_differential_equation(depth, strength, start):
    end = 1.5 * mode_time(
        strength, start, 0.9 * strength if start < 0.9 * strength else strength, depth=depth
    )
    times = np.linspace(0, end, 30)
    solved = solve_ivp(
        lambda t, u: depth * np.abs(u) ** (2 - 2 / depth) * (strength - u),
        (0, end),
        [start],
        t_eval=times,
        rtol=1e-11,
        atol=1e-14,
        method="DOP853",
    )
    np.testing.assert_allclose(
        mode_curve(strength, start, times, depth=depth), solved.y[0], rtol=1e-7, atol=1e-10
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize(("start", "end"), [(0.01, 0.02), (0.3, 2.9), (0.01, 2.9999)])
def test_time_is_the_integral_of_the_inverse_speed(depth, start, end):
    expected, _ = quad(
        lambda v: math.exp(v) / (depth * math.exp(v) ** (2 - 2 / depth) * (3 - math.exp(v))),
        math.log(start),
        math.log(end),
        epsabs=0,
        epsrel=1e-11,
        limit=500,
    )
    found = mode_time(3, start, end, depth=depth, tau=5)
    assert found == pytest.approx(5 * expected, rel=1e-8)
    np.testing.assert_allclose(mode_curve(3, start, [found], depth=depth, tau=5), [end], rtol=1e-7)


def test_depth_two_values_of_an_independent_simulation():
    found = [mode_curve(s, 1e-3, [2.0])[0] for s in (4, 2, 1)]
    assert found == pytest.approx([3.9982, 1.1972, 0.0518], abs=5.1e-5)
    assert mode_time(3, 0.01, 1.5) == pytest.approx(math.log(299) / 6, rel=1e-12)
    assert mode_curve(3, 0.01, [mode_time(3, 0.01, 1.5)])[0] == pytest.approx(1.5, rel=1e-12)


def test_very_deep_networks_approach_the_limit_of_the_paper():
    def part(u: float) -> float:
        return math.log(u / (2 - u)) / 4 - 1 / (2 * u)

    limit = part(1.5) - part(0.1)
    assert 100_000 * mode_time(2, 0.1, 1.5, depth=100_000) == pytest.approx(limit, rel=1e-3)
    assert 100 * mode_time(2, 0.1, 1.5, depth=100) != pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3, 30])
def test_curve_begins_at_start_rises_and_stays_below_the_strength(depth):
    found = mode_curve(2, 0.01, [0, 1e-3, 1, 1e3, 1e9], depth=depth)
    assert found[0] == pytest.approx(0.01, rel=1e-10)
    assert (np.diff(found) >= 0).all() and found[-1] == pytest.approx(2, rel=1e-10) and (found <= 2).all()


def test_gradient_descent_is_close_at_a_small_rate_with_tau_as_its_inverse():
    x, y = task()
    modes = linear_modes(x, y)
    first, second = decoupled_weights(modes, [8], 1e-3)
    for _ in range(2000):
        error = y - x @ first.T @ second.T
        first, second = (
            first + 1e-3 * second.T @ error.T @ x,
            second + 1e-3 * error.T @ x @ first.T,
        )
    expected = [mode_curve(s, 1e-3, [2000], tau=1000)[0] for s in modes.strengths]
    np.testing.assert_allclose(modes.measured([first, second]), expected, rtol=5e-3)


def test_modes_are_those_of_the_data_for_sum_and_mean():
    x, y = task()
    modes = linear_modes(x, y)
    assert modes.strengths == pytest.approx([4, 2, 1])
    np.testing.assert_allclose((modes.outputs.T * modes.strengths) @ modes.inputs, y.T @ x, atol=1e-12)
    mean = linear_modes(math.sqrt(30) * x, math.sqrt(30) * y, reduction="mean")
    assert mean.strengths == pytest.approx([4, 2, 1])


def test_imbalance_is_conserved_by_the_flow_from_any_start():
    x, y = task()
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape) / 2 for shape in ((7, 8), (5, 7), (6, 5))]
    after = flow(weights, x, y, 1.0, 2000)
    assert max(np.abs(a - b).max() for a, b in zip(weights, after, strict=True)) > 0.1
    for old, new in zip(layer_imbalance(weights), layer_imbalance(after), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-8)
    balanced = decoupled_weights(linear_modes(x, y), [3, 3], 0.2)
    assert max(np.abs(m).max() for m in layer_imbalance(balanced)) < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mode_curve(0, 0.1, [1]), "strength must be in"),
        (lambda: mode_curve(2, 0, [1]), r"start must be in \(0, 2\), got 0"),
        (lambda: mode_curve(2, 3, [1], depth=1), r"start must be in \[0, 2\), got 3"),
        (lambda: mode_curve(2, 0.1, [-1]), "times must be finite and at least 0, got -1 at index 0"),
        (lambda: mode_curve(2, 0.1, [1], depth=0), "depth must be an integer >= 1, got 0"),
        (lambda: mode_curve(2, 0.1, [1], tau=0), "tau must be in"),
        (lambda: mode_time(2, 0.1, 2), r"end must be in \[0.1, 2\), got 2"),
        (
            lambda: linear_modes(np.ones((4, 2)), np.ones((4, 1))),
            "inputs must be white: the sum .* to 0.0001, got 4 off",
        ),
        (lambda: linear_modes(np.eye(2), np.ones((3, 1))), "one row for each of 2 inputs, got 3"),
        (lambda: linear_modes(np.eye(2), np.ones(2)), r"targets must be a matrix, got shape \(2,\)"),
        (lambda: linear_modes(np.eye(2), [[math.nan], [1]]), "targets must be finite"),
        (lambda: decoupled_weights(linear_modes(*task()), [2], 0.1), r"widths\[0\] must be an integer >= 3"),
        (lambda: decoupled_weights(linear_modes(*task()), [4], [0.1]), "one for each of 3 modes, got 1"),
        (lambda: layer_imbalance([np.eye(2), np.eye(3)]), r"weights\[1\] must have 2 columns"),
        (lambda: layer_imbalance([]), "weights must hold at least one matrix"),
        (lambda: linear_modes(*task()).measured([np.eye(3)]), r"weights\[0\] must have 8 columns"),
        (lambda: linear_modes(*task()).measured([np.eye(8)]), "weights must end in 6 outputs, got 8"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
