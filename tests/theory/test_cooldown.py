from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brute

from thalweg.theory import (
    annealing_law,
    best_cooldown,
    continuation_factor,
    convex_schedule_bound,
    cooldown_schedule,
    transfer_rate,
)


def test_cooldown_is_constant_and_then_falls_towards_the_step_that_is_left_out():
    np.testing.assert_allclose(cooldown_schedule(9, 0.5), [1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(cooldown_schedule(3, 1.0), [1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(
        cooldown_schedule(4, 0.8, "sqrt"), [1, 1 - 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    )
    np.testing.assert_allclose(cooldown_schedule(5, 0.0), np.ones(5))


def test_by_the_bound_longer_cooldowns_are_better_with_values_of_an_independent_computation():
    found = best_cooldown(400, fractions=[0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    expected = (0.1236, 0.1161, 0.1093, 0.1038, 0.1016, 0.1008, 0.1006)
    assert found.values == pytest.approx(expected, abs=5.1e-5)
    assert (found.fraction, found.value) == (1.0, min(found.values))


def test_at_a_rate_that_is_too_low_a_shorter_cooldown_is_better():
    best = convex_schedule_bound(cooldown_schedule(400, 1.0)).best_factor
    low = best_cooldown(400, lambda s: convex_schedule_bound(0.4 * best * s).value)
    high = best_cooldown(400, lambda s: convex_schedule_bound(2 * best * s).value)
    assert 0 < low.fraction < 1 == high.fraction


def test_the_annealing_law_has_a_best_cooldown_inside_the_run():
    rates = 1e-3 * cooldown_schedule(4000, 0.5)
    drops = np.concatenate([[0], -np.diff(rates)])
    felt = np.cumsum([(drops[: i + 1] * 0.99 ** np.arange(i, -1, -1)).sum() for i in range(4000)])
    law = annealing_law(rates, 2 + 0.5 * np.cumsum(rates) ** -0.5 - 0.6 * felt, decay=0.99)
    found = best_cooldown(4000, lambda s: law.predict(1e-3 * s, [4000]).loss[0])
    ends = dict(zip(found.fractions, found.values, strict=True))
    assert 0 < found.fraction < 1
    assert found.value < min(ends[0.0], ends[1.0])


def test_a_transferred_rate_is_the_best_of_the_other_schedule_whatever_distance_and_gradients():
    tuned, planned = cooldown_schedule(400, 0.1), cooldown_schedule(1600, 0.7)
    known = {"distance": 3.0, "gradient_norm": 0.2}
    rate = convex_schedule_bound(tuned, **known).best_factor
    ends = brute(
        lambda r: convex_schedule_bound(r[0] * planned, **known).value, [slice(0.05, 1, 0.001)], finish=None
    )
    assert transfer_rate(rate, tuned, planned) == pytest.approx(float(ends), abs=1e-3)
    assert transfer_rate(0.3, tuned, tuned) == pytest.approx(0.3)


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_a_longer_run_goes_on_at_the_factor_that_a_search_finds_best(fraction):
    first, further = np.ones(320), cooldown_schedule(1280, fraction)
    tuned = cooldown_schedule(400, 0.2)
    peak = convex_schedule_bound(tuned).best_factor
    grid = np.linspace(0.05, 1.5, 2901)
    ends = [convex_schedule_bound(peak * np.concatenate([first, f * further])).value for f in grid]
    found = continuation_factor(first, further, tuned=tuned)
    assert found == pytest.approx(grid[np.argmin(ends)], abs=6e-4)
    assert found < 0.5
    assert min(ends) < ends[list(grid).index(1.0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cooldown_schedule(0, 0.5), "steps must be an integer >= 1, got 0"),
        (lambda: cooldown_schedule(9, 1.2), r"fraction must be in \[0, 1\], got 1.2"),
        (lambda: cooldown_schedule(9, 0.2, "cosine"), "shape must be one of linear, sqrt; got 'cosine'"),
        (lambda: best_cooldown(9, fractions=[]), "fractions must hold at least one"),
        (lambda: best_cooldown(9, lambda s: math.nan), "value must give a number .* got NaN at fraction 0"),
        (lambda: transfer_rate(0, [1], [1]), "rate must be in"),
        (lambda: transfer_rate(1, [1, 0], [1]), "rates must be above 0 at the step of the bound"),
        (lambda: continuation_factor([1, -1], [1]), "first must be finite and at least 0, got -1 at index 1"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
