from __future__ import annotations

import numpy as np
import pytest

from thalweg.theory import annealing_areas, annealing_law

STEPS, PEAK = 20_000, 1e-3
TIME = np.arange(STEPS)
CONSTANT = np.full(STEPS, PEAK)
COSINE = PEAK * (0.1 + 0.45 * (1 + np.cos(np.pi * TIME / (STEPS - 1))))
COOLDOWN = np.where(TIME < 0.8 * STEPS, PEAK, PEAK * (1 - 0.9 * (TIME - 0.8 * STEPS) / (0.2 * STEPS)))
AT = np.arange(100, STEPS + 1, 100)
FLOOR, SCALE, EXPONENT, COOLING = TRUE = (2.6, 0.4, 0.5, 0.4)


def double_sum(rates, decay: float, warmup: int = 0) -> np.ndarray:
    """The annealing area as the paper writes it, drop by drop."""
    area = []
    for s in range(len(rates)):
        area.append(
            sum(
                (rates[k - 1] - rates[k]) * decay ** (i - k)
                for i in range(s + 1)
                for k in range(warmup + 1, i + 1)
            )
        )
    return np.array(area)


def curve(rates, decay: float = 0.999) -> np.ndarray:
    """Losses after every step, by a loop over the recursion."""
    losses, s1, s2, felt = [], 0.0, 0.0, 0.0
    for i, rate in enumerate(rates):
        felt = decay * felt + (rates[i - 1] - rate if i else 0.0)
        s1, s2 = s1 + rate, s2 + felt
        losses.append(FLOOR + SCALE * s1**-EXPONENT - COOLING * s2)
    return np.array(losses)


def noisy(rates, seed: int, sd: float = 0.002) -> np.ndarray:
    return curve(rates)[AT - 1] + sd * np.random.default_rng(seed).standard_normal(len(AT))


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99, 1.0])
def test_areas_are_the_double_sums_of_the_paper(decay):
    rates = np.random.default_rng(0).uniform(0, 1e-3, 40)
    forward, annealing = annealing_areas(rates, decay, warmup=0)
    np.testing.assert_allclose(forward, [rates[: s + 1].sum() for s in range(40)], rtol=1e-13)
    np.testing.assert_allclose(annealing, double_sum(rates, decay), rtol=1e-10, atol=1e-18)


def test_warmup_counts_in_the_forward_area_only_and_is_read_off_the_rising_start():
    rates = np.concatenate([np.linspace(1e-4, 1e-3, 8), np.linspace(1e-3, 0, 20)])
    forward, annealing = annealing_areas(rates, 0.9)
    assert forward[7] == pytest.approx(rates[:8].sum())
    np.testing.assert_allclose(annealing, double_sum(rates, 0.9, warmup=7), rtol=1e-10, atol=1e-18)
    assert annealing_areas(rates, 0.9, warmup=0)[1].min() < 0 <= annealing.min()


def test_without_decay_the_area_is_the_distance_below_the_peak_summed():
    np.testing.assert_allclose(annealing_areas(COSINE, 1.0)[1], np.cumsum(PEAK - COSINE), rtol=1e-10)


def test_a_constant_rate_has_no_annealing_and_warming_again_raises_the_loss():
    assert not annealing_areas(CONSTANT)[1].any()
    saw = np.tile(np.linspace(PEAK, PEAK / 2, 50), 2)
    annealing = annealing_areas(saw, 0.9)[1]
    assert annealing[52] < annealing[49]


@pytest.mark.parametrize("curves", [(COSINE, CONSTANT), (COSINE,), (COSINE, COOLDOWN)])
def test_exact_curves_give_the_exact_numbers_back(curves):
    found = annealing_law(list(curves), [curve(rates)[AT - 1] for rates in curves], [AT] * len(curves))
    assert (found.floor, found.scale, found.exponent, found.cooling) == pytest.approx(TRUE, rel=1e-6)
    assert found.readings == len(curves) * len(AT)


def test_an_unseen_cooldown_is_predicted_where_a_power_law_alone_is_far_off():
    found = annealing_law([COSINE, CONSTANT], [noisy(COSINE, 0), noisy(CONSTANT, 1)], [AT, AT])
    truth = curve(COOLDOWN)[AT - 1]
    forecast = found.predict(COOLDOWN, AT)
    assert np.abs(forecast.loss - truth).mean() < 5e-4
    forward = np.cumsum(COOLDOWN)[AT - 1]
    power_law = np.polyfit(np.cumsum(CONSTANT)[AT - 1] ** -EXPONENT, noisy(CONSTANT, 1), 1)
    assert np.abs(np.polyval(power_law, forward**-EXPONENT) - truth)[-1] > 0.1


def test_the_mean_loss_of_sgd_on_a_quadratic_is_forecast_better_than_by_a_power_law():
    """Not the law's own curves: the exact mean loss of SGD, with gradient noise shaped like the curvature."""
    steps, peak, curvature = 3000, 0.3, np.arange(1, 101) ** -1.2
    at = np.arange(50, steps + 1, 25)

    def descent(rates) -> np.ndarray:
        moment, losses = np.ones(100), []
        for rate in rates:
            moment = (1 - rate * curvature) ** 2 * moment + 0.5 * rate**2 * curvature
            losses.append(2 + (curvature * moment).sum() / 2)
        return np.array(losses)[at - 1]

    constant = np.full(steps, peak)
    cosine = peak * (0.05 + 0.475 * (1 + np.cos(np.pi * np.arange(steps) / steps)))
    unseen = peak * np.concatenate([np.ones(2100), np.linspace(1, 0.05, 900)])
    curves = [descent(constant), descent(cosine)]
    law = annealing_law([constant, cosine], curves, [at, at], decay=[0.5, 0.9, 0.99, 0.999], skip=100)
    truth, area = descent(unseen), np.cumsum(unseen)[at - 1]
    errors = []
    for exponent in (0.3, 0.5, 0.7, 1, 1.5):
        fitted = np.polyfit(np.cumsum(constant)[at - 1] ** -exponent, curves[0], 1)
        errors.append(np.abs(np.polyval(fitted, area**-exponent) - truth)[4:].mean())
    forecast = law.predict(unseen, at)
    assert np.abs(forecast.loss - truth)[4:].mean() < min(errors) / 3
    assert forecast.loss[-1] == pytest.approx(truth[-1], rel=0.05)


def test_standard_errors_are_those_of_many_repetitions():
    ends, errors, numbers, stated, scatters = [], [], [], [], []
    for seed in range(60):
        found = annealing_law(
            [COSINE, CONSTANT], [noisy(COSINE, 2 * seed), noisy(CONSTANT, 2 * seed + 1)], [AT, AT]
        )
        forecast = found.predict(COOLDOWN, AT)
        ends.append(forecast.loss)
        errors.append(forecast.error)
        scatters.append(forecast.scatter)
        stated.append(np.sqrt(np.diag(found.covariance)))
        numbers.append([found.floor, found.scale, found.exponent, found.cooling])
    spread = np.std(ends, axis=0)
    assert np.mean(errors, axis=0)[[5, 100, -1]] == pytest.approx(spread[[5, 100, -1]], rel=0.35)
    assert np.mean(stated, axis=0) == pytest.approx(np.std(numbers, axis=0), rel=0.4)
    assert np.mean(scatters) == pytest.approx(0.002, rel=0.1)


def test_readings_that_err_together_make_the_numbers_less_certain():
    rng = np.random.default_rng(5)
    wander = rng.standard_normal((2, len(AT)))
    for i in range(1, len(AT)):
        wander[:, i] = 0.9 * wander[:, i - 1] + np.sqrt(1 - 0.81) * wander[:, i]
    alone = annealing_law([COSINE, CONSTANT], [noisy(COSINE, 0), noisy(CONSTANT, 1)], [AT, AT])
    together = annealing_law(
        [COSINE, CONSTANT],
        [curve(r)[AT - 1] + 0.002 * w for r, w in zip((COSINE, CONSTANT), wander, strict=True)],
        [AT, AT],
    )
    ratio = np.sqrt(np.diag(together.covariance) / np.diag(alone.covariance))
    assert (ratio > 2).all()


def test_a_few_spikes_hardly_move_the_fit():
    losses = noisy(COSINE, 3)
    clean = annealing_law(COSINE, losses, AT)
    losses[::40] += 1.0
    spiked = annealing_law(COSINE, losses, AT)
    assert spiked.predict(COOLDOWN).loss[-1] == pytest.approx(clean.predict(COOLDOWN).loss[-1], abs=0.002)


def test_of_several_decays_the_true_one_fits_best():
    rates = [COSINE, COOLDOWN]
    found = annealing_law(rates, [noisy(r, 4) for r in rates], [AT, AT], decay=[0.99, 0.999, 0.9999])
    assert found.decay == 0.999


def test_losses_of_the_warmup_and_of_the_skipped_steps_are_not_fitted():
    rates = np.concatenate([np.linspace(1e-5, PEAK, 500), COSINE])
    forward, annealing = annealing_areas(rates)
    losses = FLOOR + SCALE * forward**-EXPONENT - COOLING * annealing
    losses[:700] = 9.0
    found = annealing_law(rates, losses, skip=300)
    assert (found.floor, found.cooling) == pytest.approx((FLOOR, COOLING), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": CONSTANT}, "rates must fall somewhere before the last loss"),
        ({"rates": -COSINE}, r"rates\[0\] must be finite and at least 0, got -0.001 at index 0"),
        ({"rates": []}, r"rates must be a sequence of learning rates, or a list of them, got \[\]"),
        ({"losses": np.zeros(len(AT))}, r"losses\[0\] must be finite and above 0, got 0 at index 0"),
        ({"losses": np.ones(3)}, r"losses\[0\] must have one loss for each of the 200 steps, got 3"),
        ({"steps": None}, r"one loss for each of the 20000 steps, got 200; give steps"),
        ({"steps": AT[::-1]}, r"steps\[0\] must be increasing whole numbers from 1 to 20000"),
        ({"rates": [COSINE, COSINE]}, "one sequence a curve, got 2, 200 and 200"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": None}, r"decay must be a number in \[0, 1\], got None"),
        ({"decay": "a"}, r"decay must be a number in \[0, 1\], got 'a'"),
        ({"decay": [0.9, "a"]}, r"decay must be a number in \[0, 1\], got 'a'"),
        ({"losses": None}, r"losses\[0\] must be a sequence of numbers, got shape \(\)"),
        (
            {"rates": [COSINE], "losses": None, "steps": [AT]},
            "losses must be a list with one sequence a curve, got None",
        ),
        (
            {"rates": [COSINE], "losses": [curve(COSINE)], "steps": 3},
            "steps must be a list with one sequence",
        ),
        ({"decay": []}, "decay must be a number or a list of them"),
        ({"skip": 19_800}, "losses must have at least 5 after warm-up and skip, got 2"),
        ({"huber": 0}, "huber must be in"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    arguments = {"rates": COSINE, "losses": curve(COSINE)[AT - 1], "steps": AT, **change}
    with pytest.raises(ValueError, match=message):
        annealing_law(**arguments)


def test_a_decay_may_be_a_number_of_any_kind():
    rates, losses = COSINE[:300], np.linspace(3, 2, 300)
    expected = annealing_law(rates, losses, decay=0.5)
    for one in (np.float32(0.5), np.array(0.5), np.array([0.5]), [np.float64(0.5)]):
        found = annealing_law(rates, losses, decay=one)
        assert (found.decay, found.floor) == (0.5, expected.floor) and type(found.decay) is float


def test_a_forecast_refuses_what_has_no_forward_area():
    found = annealing_law(COSINE, curve(COSINE)[AT - 1], AT)
    with pytest.raises(ValueError, match="rates must have one above 0 up to the first step predicted, 1"):
        found.predict([0.0, 1e-3])
    with pytest.raises(ValueError, match="warmup must be less than the 2 steps of rates, got 2"):
        found.predict([1e-3, 1e-3], warmup=2)


def test_losses_may_be_tensors_as_training_leaves_them():
    torch = pytest.importorskip("torch")
    rates, losses = COSINE[::10], np.float32(curve(COSINE[::10]))
    expected = annealing_law(rates, losses)
    tensor = torch.tensor(losses, requires_grad=True)
    assert annealing_law(torch.tensor(rates), tensor).floor == expected.floor
    assert annealing_law(list(rates), list(tensor.unbind())).floor == expected.floor
    assert annealing_law(rates, tensor.bfloat16()).floor == pytest.approx(expected.floor, rel=0.05)
