"""A run that is about to diverge is told before its loss shows it; growth that slows down is none."""

import math

import pytest
import torch
from benchmarks.findings.planted import divergence_ahead as planted

from readme_loop import batches, paste
from thalweg import papers
from thalweg.watch import Reading, all_sensors, senses
from thalweg.watch.rules.divergence_ahead import DivergenceAhead

SENSORS = {"gradient norm", "weight norm", "log Z", "learning rate", "sharpness"}


@pytest.fixture
def read(monkeypatch):
    """Only the sensors whose readings the rule sees, which is faster."""
    kept = [one for one in all_sensors() if one.name in SENSORS]
    monkeypatch.setattr(senses, "all_sensors", lambda: kept)


def told(rows, optimizer="SGD"):
    rule = DivergenceAhead({"optimizer": optimizer, "lr": 0.1})
    return [one for row in rows for one in rule.see(Reading(*row))]


def noisy(count, seed, spread):
    source = torch.Generator().manual_seed(seed)
    return torch.exp(spread * torch.randn(count, generator=source)).tolist()


def rising(name, since, rate, every=1, steps=200, seed=0, spread=0.2, slope=0.0):
    """Rows of a loss with a slope, and of another number that grows exponentially from a step on."""
    rows = []
    noises = zip(noisy(steps, seed, 0.05), noisy(steps, seed + 100, spread), strict=True)
    for step, (loss, noise) in enumerate(noises, 1):
        rows.append((step, "loss", loss * math.exp(slope * max(0, step - since))))
        if step % every == 0:
            value = noise * math.exp(rate * max(0, step - since))
            extra = {"largest logit": value} if name == "log Z" else {}
            rows.append((step, name, value, {}, extra))
    return rows


def sharp(step, ratio, lr=0.1):
    return step, "sharpness", 20 * ratio, {}, {"ratio": ratio, "limit": 20.0, "lr": lr}


@pytest.mark.parametrize("name", ["rate_jump", "rate_ramp"])
def test_a_planted_divergence_is_told_before_its_loss_shows_it(name, read):
    scenario = getattr(planted, name)
    outcome, twin = scenario.outcome(0), scenario.outcome(0, planted=False)
    (found, *_) = [one for one in outcome.findings if one.name == "divergence ahead"]
    worst = max(twin.losses[scenario.onset :])
    late = enumerate(outcome.losses[scenario.onset :], scenario.onset + 1)
    shown = next(step for step, loss in late if not loss < 1.5 * worst)
    assert scenario.onset <= found.found < shown
    assert "divergence ahead" not in {one.name for one in twin.findings}


def test_a_jump_of_the_rate_is_judged_by_the_last_sharpness_before_the_step_is_made():
    rows = [(1, "learning rate", 0.1), sharp(60, 0.5)]
    (found,) = told([*rows, (100, "learning rate", 0.5)])
    assert found.step == 100 and found.evidence["sharpness over its limit"] == pytest.approx(2.5)
    assert told([*rows, (100, "learning rate", 0.3)]) == []
    assert told([*rows, (400, "learning rate", 0.5)]) == []
    ramp = [(60 + step, "learning rate", 0.1 * 1.05**step) for step in range(1, 40)]
    assert told([*rows, *ramp]) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "rate", "every"), [("gradient norm", 0.3, 1), ("weight norm", 0.03, 10), ("log Z", 0.08, 5)]
)
def test_exponential_growth_is_told_while_the_loss_is_flat_and_not_while_it_falls(name, rate, every, seed):
    spread = 0.01 if name == "weight norm" else 0.2
    (found,) = told(rising(name, 120, rate, every, seed=seed, spread=spread))
    assert 100 <= found.step <= 175
    assert found.evidence["times"] >= found.evidence["threshold"]
    assert told(rising(name, 120, rate, every, seed=seed, spread=spread, slope=-0.06)) == []
    assert told(rising(name, 120, 0.0, every, seed=seed, spread=spread, steps=1000)) == []


@pytest.mark.parametrize("seed", range(3))
def test_growth_began_where_it_rose_and_not_where_it_is_looked_at_from(seed):
    for name, since, late in [("gradient norm", 150, 4), ("loss", 150, 4)]:
        noise = noisy(200, seed, 0.1)
        values = [one * math.exp(0.8 * max(0, step - since)) for step, one in enumerate(noise, 1)]
        rows = [(step, name, value) for step, value in enumerate(values, 1)]
        (found,) = told(rows)
        assert since - 1 <= found.step <= since + late


def test_a_run_that_has_come_to_nan_is_not_about_to_diverge():
    growing = [(step, "loss", math.exp(0.4 * max(0, step - 30))) for step in range(1, 61)]
    lost = [(step, name, math.nan) for step in range(61, 600) for name in ("loss", "gradient norm")]
    assert len(told(growing)) == 1
    assert told([*growing[:40], *lost]) == told(growing[:40])
    assert len(told([*growing, *lost])) == 1


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_noise_is_no_growth(spread):
    for seed in range(5):
        rows = rising("gradient norm", 0, 0.0, steps=2000, seed=seed, spread=spread)
        assert told(rows) == []


def test_weights_that_grow_because_steps_do_or_ever_more_slowly_are_none():
    slowing = [(10 * i, "weight norm", 1 + 5 * i**0.5) for i in range(20)]
    assert told(slowing) == []
    growing = [(10 * i, "weight norm", 1.3 ** max(0, i - 5)) for i in range(12)]
    warm = [(10 * i - 1, "learning rate", 0.01 * i) for i in range(1, 12)]
    assert told(sorted([*growing, *warm])) == []
    assert len(told(growing)) == 1


def test_sharpness_beyond_its_limit_needs_a_gradient_that_grows():
    flat = rising("gradient norm", 10**6, 0.0, steps=140)
    assert told(sorted([*flat, sharp(120, 3.0)], key=lambda row: row[0])) == []
    growing = rising("gradient norm", 115, 0.12, steps=160)
    far = told(sorted([*growing, sharp(120, 3.0)], key=lambda row: row[0]))
    near = told(sorted([*growing, sharp(120, 1.2)], key=lambda row: row[0]))
    assert far and far[0].evidence["threshold"] == 2 and not (near and near[0].evidence["threshold"] == 2)


@pytest.mark.parametrize(
    ("ratios", "climb", "count"),
    [
        ([0.03, 0.1, 0.3], 2.0, 1),
        ([0.01, 0.02, 0.04], 2.0, 0),
        ([0.2, 0.4, 0.6, 0.8, 0.95, 1.0, 0.98], 1.5, 0),
        ([0.1, 0.5, 0.9, 1.0], 2.0, 0),
        ([0.03, 0.1, 0.3, 0.9], 1.0, 0),
    ],
    ids=["doubling towards it", "still far", "linear warm-up", "slowing down", "at a constant rate"],
)
def test_sharpness_that_heads_for_its_limit(ratios, climb, count):
    rows = [sharp(100 + 20 * i, ratio, 0.01 * climb**i) for i, ratio in enumerate(ratios)]
    assert len(told(rows)) == count


def test_adams_first_steps_are_not_judged():
    rows = [sharp(2 + i, 0.01 * 10**i, 0.01 * 2**i) for i in range(3)]
    assert told(rows, "AdamW") == [] and len(told(rows, "SGD")) == 1


def test_every_remedy_runs_as_pasted_and_every_paper_is_in_the_catalog():
    model = torch.nn.Linear(8, 4)
    (found,) = told([(1, "learning rate", 0.1), sharp(60, 0.5), (100, "learning rate", 0.8)])
    for key in {*found.papers, *(remedy.paper for remedy in found.remedies)}:
        assert papers.find(key).key == key
    for remedy in found.remedies:
        opt = torch.optim.SGD(model.parameters(), lr=0.8)
        _, steps = paste(remedy.code, model, opt, batches(12))
        assert max(rates[0] for _, rates, _ in steps) < 0.8 / 2
    lowered = {"opt": torch.optim.SGD(model.parameters(), lr=0.8)}
    exec(found.remedies[0].code, lowered)
    # Sharpness 0.5 * 20 at the limit 2 / lr of gradient descent: stable again.
    assert lowered["opt"].param_groups[0]["lr"] * 10 < 2


def test_weights_that_grow_from_the_start_while_the_loss_falls_go_where_large_targets_are():
    """As in a regression whose targets were never standardised: the loss falls, by a few hundredths."""

    def rows(slope, before=0):
        for step in range(1, 33 + 10 * before):
            yield step, "loss", math.exp(-slope * step) * (1 + 0.001 * math.sin(3.7 * step))
            if step % 10 == 2:
                yield step, "weight norm", 1.5 ** max(0, step // 10 - before)

    assert told(rows(0.003)) == []
    (found,) = told(rows(0.0))
    assert "the loss does not fall" in found.message
    (found,) = told(rows(0.003, before=6))
    assert "the loss falls by little" in found.message


@pytest.mark.parametrize("name", ["loss", "gradient norm"])
def test_a_leap_is_no_exponential_growth(name):
    """As when the target network of Q-learning is renewed: from next to nothing, and back."""
    levels = [1e-9, 1.1e-9, 1.3e-9, 6e-3]
    rows = [(step, name, 1e-9 * one) for step, one in enumerate(noisy(100, 0, 0.01), 1)]
    rows += [(101 + step, name, levels[min(step // 5, 3)]) for step in range(25)]
    assert told(rows) == []
    exponential = [(101 + step, name, 1e-9 * math.exp(0.6 * step)) for step in range(25)]
    assert len(told([*rows[:100], *exponential])) == 1


@pytest.mark.parametrize(("before", "count"), [(1.0, 1), (300.0, 0)])
def test_what_grows_to_where_it_has_been_for_long_does_not_diverge(before, count):
    noise = noisy(500, 0, 0.1)
    # A hundred steps at a height, 200 at one, and growth to a hundred.
    levels = [1.0] * 20 + [before] * 100 + [1.0] * 200 + [math.exp(0.25 * step) for step in range(20)]
    rows = [
        (step, "loss", one * level) for step, (one, level) in enumerate(zip(noise, levels, strict=False), 1)
    ]
    assert len(told(rows)) == count
