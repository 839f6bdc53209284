"""An exploding gradient grows back through the layers, or lastingly from step to step; a spike is none."""

import math

import pytest
import torch

from thalweg import papers
from thalweg.watch import Reading
from thalweg.watch.growth import Series
from thalweg.watch.rules.exploding_gradient import ExplodingGradient


def told(rows):
    rule = ExplodingGradient({"optimizer": "SGD", "lr": 0.1})
    return [one for row in rows for one in rule.see(Reading(*row))]


def profile(step, norms):
    return step, "backward signal", norms[0] / norms[-1], {f"layer {i}": v for i, v in enumerate(norms)}


def noisy(count, seed, spread=0.3):
    source = torch.Generator().manual_seed(seed)
    return torch.exp(spread * torch.randn(count, generator=source)).tolist()


def run(norms, losses):
    rows = []
    for step, (norm, loss) in enumerate(zip(norms, losses, strict=True), 1):
        rows += [(step, "loss", loss), (step, "gradient norm", norm, {"a": norm, "b": norm / 2})]
    return rows


def test_two_profiles_in_a_row_are_one_finding():
    growing = [2.0 ** (12 - layer) for layer in range(13)]
    (found,) = told(profile(1 + 10 * i, growing) for i in range(4))
    assert found.step == 1 and found.layers == ("layer 0", "layer 1", "layer 2")
    # Medians of the first four and the largest of the last four of thirteen.
    assert found.evidence["ratio"] == pytest.approx((2.0**11 + 2.0**10) / 2 / 2.0**3)
    assert found.evidence["ratio"] > found.evidence["threshold"]
    for key in {*found.papers, *(remedy.paper for remedy in found.remedies)}:
        assert papers.find(key).key == key


def test_its_own_clipping_runs_as_pasted_and_holds_the_gradient_at_what_is_usual():
    growth = [math.exp(0.2 * max(0, t - 100)) for t in range(150)]
    (over_steps,) = told(run(growth, [1.0] * 150))
    (over_depth,) = told(profile(1 + 10 * i, [2.0 ** (12 - layer) for layer in range(13)]) for i in range(4))
    for found, norm in ((over_steps, 2.0), (over_depth, 1.0)):
        p = torch.nn.Parameter(torch.zeros(2))
        opt = torch.optim.SGD([p], lr=0.1, momentum=0.9)
        exec(found.remedies[0].code, {"opt": opt, "torch": torch})
        p.grad = torch.tensor([300.0, 400.0])
        opt.step()
        assert p.detach().norm().item() == pytest.approx(0.1 * norm, rel=1e-3)


def test_one_profile_or_a_mild_one_is_none():
    growing, mild = [2.0 ** (12 - i) for i in range(13)], [1.2 ** (12 - i) for i in range(13)]
    assert told([profile(1, growing), profile(11, mild), profile(21, growing)]) == []
    assert told([profile(1, [1e6, 1.0, 1.0])] * 5) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_lasting_exponential_growth_is_found_and_a_spike_or_a_step_up_is_not(seed):
    noise = noisy(300, seed)
    growth = [n * math.exp(0.2 * max(0, t - 200)) for t, n in enumerate(noise)]
    (found,) = told(run(growth, noisy(300, seed + 50, 0.05)))
    assert 195 <= found.step <= 215 and found.layers == ("a", "b")
    spiked = [n * (100.0 if t == 250 else 1.0) for t, n in enumerate(noise)]
    assert told(run(spiked, noisy(300, seed + 50, 0.05))) == []
    assert told(run(noise, noisy(300, seed + 50, 0.05))) == []


def test_a_network_that_leaves_a_plateau_grows_its_gradient_while_the_loss_falls():
    growth = [1e-4 * math.exp(0.2 * max(0, t - 100)) for t in range(150)]
    falling = [2.3 - 1e-5 * math.exp(0.2 * max(0, t - 100)) for t in range(150)]
    assert told(run(growth, falling)) == []


def test_growth_of_an_exact_exponential():
    series = Series(3)
    for step in range(1, 31):
        series.add(step, 2.0 ** (0 if step < 19 else step - 18))
    grown = series.growth()
    assert (grown.began, grown.times) == (19, 2.0**9)
    assert grown.least == grown.steady * grown.least == pytest.approx(8.0)
    assert grown.record == 2.0**11 and grown.noise == pytest.approx(0.0, abs=1e-9)
    for value in (math.nan, math.inf, 0.0, -1.0):
        series.add(31, value)
    assert series.growth() == grown


def test_the_noise_is_that_of_the_steps_and_not_the_trend():
    series = Series(200)
    for step, value in enumerate(noisy(800, 0, 0.5)):
        series.add(step, value * math.exp(0.1 * step))
    assert series.growth().noise == pytest.approx(0.5 * math.sqrt(2), rel=0.1)
