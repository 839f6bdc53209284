from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.theory import convex_bound_curve, convex_schedule_bound, cooldown_schedule


def literal(rates, distance, norms) -> float:
    """The bound as it is written, every sum anew."""
    steps = len(rates)
    first = (distance**2 + sum(r**2 * g**2 for r, g in zip(rates, norms, strict=True))) / (2 * sum(rates))
    second = 0.0
    for k in range(steps - 1):
        squares = sum(rates[t] ** 2 * norms[t] ** 2 for t in range(k, steps))
        second += rates[k] / sum(rates[k + 1 :]) * squares / sum(rates[k:])
    return first + second / 2


@pytest.mark.parametrize("seed", range(3))
def test_bound_is_the_literal_sum_for_any_schedule(seed):
    rng = np.random.default_rng(seed)
    rates, norms = rng.uniform(0, 1, 30), rng.uniform(0.5, 2, 30)
    rates[[0, 7]] = 0
    found = convex_schedule_bound(rates, distance=3, gradient_norm=norms)
    assert found.value == pytest.approx(literal(rates, 3, norms), rel=1e-12)
    assert found.value == pytest.approx(found.distance + found.noise + found.last, rel=1e-14)


def test_curve_is_the_bound_of_every_beginning():
    rates = np.random.default_rng(4).uniform(0.1, 1, 12)
    expected = [literal(rates[:t], 1, np.full(t, 2.0)) for t in range(1, 13)]
    np.testing.assert_allclose(convex_bound_curve(rates, gradient_norm=2), expected, rtol=1e-12)
    np.testing.assert_allclose(
        convex_bound_curve(rates, [3, 12], gradient_norm=2), [expected[2], expected[11]], rtol=1e-12
    )


@pytest.mark.parametrize(("steps", "distance", "norm"), [(1, 1, 1), (10, 2, 3), (400, 0.5, 7)])
def test_constant_rate_has_the_harmonic_closed_form(steps, distance, norm):
    harmonic = 1 + sum(1 / k for k in range(1, steps))
    found = convex_schedule_bound(np.full(steps, 0.3), distance=distance, gradient_norm=norm)
    expected = distance**2 / (2 * 0.3 * steps) + 0.3 * norm**2 / 2 * harmonic
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.best_value == pytest.approx(distance * norm * math.sqrt(harmonic / steps), rel=1e-12)
    assert 0.3 * found.best_factor == pytest.approx(
        distance / (norm * math.sqrt(steps * harmonic)), rel=1e-12
    )


def test_best_factor_is_where_the_bound_is_lowest():
    shape = cooldown_schedule(100, 0.3)
    found = convex_schedule_bound(shape, distance=2)
    around = [convex_schedule_bound(shape * found.best_factor * f, distance=2).value for f in (0.99, 1, 1.01)]
    assert around[1] == pytest.approx(found.best_value, rel=1e-13)
    assert around[1] < min(around[0], around[2])


COSINE = 0.5 * (1 + np.cos(np.pi * np.arange(400) / 400))


@pytest.mark.parametrize(
    ("schedule", "factor", "value"),
    [
        (np.ones(400), 0.0182, 0.1375),
        (1 / np.sqrt(np.arange(1, 401)), 0.2121, 0.1223),
        (cooldown_schedule(400, 0.2), 0.0254, 0.1093),
        (COSINE, 0.0482, 0.1034),
        (cooldown_schedule(400, 1.0, "sqrt"), 0.0738, 0.1012),
        (cooldown_schedule(400, 1.0), 0.0496, 0.1006),
    ],
    ids=["constant", "inverse root", "cooldown", "cosine", "root cooldown", "linear"],
)
def test_values_of_an_independent_computation(schedule, factor, value):
    found = convex_schedule_bound(schedule)
    assert (found.best_factor, found.best_value) == pytest.approx((factor, value), abs=5.1e-5)


def test_a_cooldown_takes_the_logarithm_out_of_the_bound():
    def scaled(schedule) -> float:
        return math.sqrt(len(schedule)) * convex_schedule_bound(schedule).best_value

    cooled = [scaled(cooldown_schedule(steps, 0.2)) for steps in (400, 6400)]
    constant = [scaled(np.ones(steps)) for steps in (400, 6400)]
    assert cooled[1] < cooled[0] and cooled[1] == pytest.approx(2.16, abs=0.005)
    assert constant[1] - constant[0] > 0.4


def test_the_bound_drops_inside_the_cooldown():
    schedule = cooldown_schedule(400, 0.2)
    factor = convex_schedule_bound(schedule).best_factor
    curve = convex_bound_curve(factor * schedule)
    before, during = curve[280] - curve[319], curve[319] - curve[399]
    assert during > 5 * before > 0


@pytest.mark.parametrize("schedule", [np.ones(400), cooldown_schedule(400, 0.2), cooldown_schedule(400, 1.0)])
def test_subgradient_descent_stays_below_its_bound(schedule):
    """Loss |x| from x = 1, with noise of standard deviation 10 on its slope, as a mean of 4000 runs."""
    rng = np.random.default_rng(0)
    x, norm = np.ones(4000), math.sqrt(101)
    rates = schedule * convex_schedule_bound(schedule, gradient_norm=norm).best_factor
    bounds = convex_bound_curve(rates, gradient_norm=norm)
    losses = []
    for rate in rates:
        losses.append(np.abs(x).mean())
        x -= rate * (np.sign(x) + 10 * rng.standard_normal(4000))
    assert (np.array(losses) <= bounds).all()
    assert losses[-1] > bounds[-1] / 10


def test_a_million_steps_are_no_burden():
    steps, harmonic = 1_000_000, math.log(999_999) + 0.5772156649015329 + 0.5 / 999_999
    found = convex_schedule_bound(np.ones(steps))
    assert found.best_value == pytest.approx(math.sqrt((1 + harmonic) / steps), rel=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": [1.0, 0.0]}, "rates must be above 0 at the step of the bound, got 0 at step 2"),
        ({"rates": [1.0, -1.0]}, "rates must be finite and at least 0, got -1 at index 1"),
        ({"rates": []}, r"rates must be a sequence of numbers, got shape \(0,\)"),
        ({"rates": "fast"}, "rates must be a sequence of numbers, got str"),
        ({"distance": 0}, "distance must be in"),
        ({"gradient_norm": -1}, "gradient_norm must be in"),
        ({"gradient_norm": [1.0]}, "gradient_norm must be one number or one for each of 2 steps, got 1"),
        ({"gradient_norm": [1.0, 0.0]}, "gradient_norm must be finite and above 0, got 0 at index 1"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        convex_schedule_bound(**{"rates": [1.0, 1.0], **change})
