from __future__ import annotations

import math

import pytest

from thalweg.probe import learning_rate_sensitivity


def test_sensitivity_is_the_mean_excess_over_the_best_with_failures_at_the_initial_loss():
    final = {0.001: 2.0, 0.01: 1.0, 0.1: 1.5, 1.0: 9.0, 10.0: math.nan}
    found = learning_rate_sensitivity(final.__getitem__, final, initial_loss=3.0)
    assert found.sensitivity == pytest.approx((1 + 0 + 0.5 + 2 + 2) / 5)
    assert (found.best_rate, found.best_loss) == (0.01, 1.0)
    assert found.losses == {0.001: 2.0, 0.01: 1.0, 0.1: 1.5, 1.0: 3.0, 10.0: 3.0}
    assert found.failed == (1.0, 10.0)


def test_gradient_descent_on_a_parabola_is_as_the_formula_says():
    # After one step from x = 1 on x²/2 the loss is (1 - rate)²/2; rates above 2 end above the start.
    def train(rate: float) -> float:
        return (1 - rate) ** 2 / 2

    rates = [0.25, 0.5, 1.0, 2.0, 4.0]
    found = learning_rate_sensitivity(train, rates, initial_loss=0.5)
    expected = (0.75**2 + 0.5**2 + 0 + 1 + 1) / 2 / 5
    assert found.sensitivity == pytest.approx(expected)
    assert (found.best_rate, found.failed) == (1.0, (4.0,))


def test_without_an_initial_loss_nothing_is_capped():
    found = learning_rate_sensitivity({1.0: 5.0, 2.0: 1.0}.__getitem__, [1.0, 2.0])
    assert (found.sensitivity, found.failed) == (2.0, ())


@pytest.mark.parametrize(
    ("rates", "initial", "message"),
    [
        ([1.0], None, r"rates must be at least two and different, got \[1\.0\]"),
        ([1.0, 1.0], None, "rates must be at least two and different"),
        ([1.0, 0.0], None, r"rates must be in \(0, inf\), got 0\.0"),
        ([1.0, 2.0], math.inf, r"initial_loss must be in \(-inf, inf\), got inf"),
        ([1.0, 3.0], None, "initial_loss must be given where training diverges: the loss at rate 3 is nan"),
        ([1.0, 2.0], 0.5, "initial_loss must be above some final loss, got 0.5"),
    ],
)
def test_sensitivity_refuses(rates, initial, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_sensitivity(
            {1.0: 1.0, 2.0: 2.0, 3.0: math.nan}.__getitem__, rates, initial_loss=initial
        )
