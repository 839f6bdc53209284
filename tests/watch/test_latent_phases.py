"""Phases of a stored run part where its readings change, however long it is and whatever else it reads."""

from __future__ import annotations

import math
import random

import pytest

from thalweg.watch import Reading, RunStore
from thalweg.watch.latent_phases import phases_of_run


def stored(path, **series):
    """A store with one run whose readings are (step, value) by name."""
    with RunStore(path, write=True) as store:
        run = store.begin("mine", {})
        for name, rows in series.items():
            readings = [(0.0, Reading(step, name.replace("_", " "), value)) for step, value in rows]
            store.write(run, rows[-1][0], readings, [])
    return path


def step_down(steps, at, noise=0.1, every=1):
    source = random.Random(steps)
    return [
        (step, math.exp(-3 * (step > at) + noise * source.gauss(0, 1))) for step in range(0, steps, every)
    ]


def found(path):
    with RunStore(path) as store:
        return phases_of_run(store, 1)


@pytest.mark.parametrize("steps", [100, 200, 3000, 60_000])
def test_a_noisy_run_that_falls_once_has_two_phases_whatever_its_length(tmp_path, steps):
    at = 3 * steps // 5
    phases = found(stored(tmp_path / "s", loss=step_down(steps, at))).phases
    assert [one.state for one in phases] == [0, 1]
    assert abs(phases[1].first - at) <= max(4, steps / 100)


@pytest.mark.parametrize("where", [range(0, 1050, 20), range(950, 2000, 20)])
def test_a_reading_of_half_of_the_run_leaves_the_other_half_to_those_of_all(tmp_path, where):
    source = random.Random(0)
    sharpness = [(step, 10 + source.gauss(0, 1)) for step in where]
    at = 1200 if where[0] == 0 else 700
    result = found(stored(tmp_path / "s", loss=step_down(2000, at), sharpness=sharpness))
    assert result.readings == ("loss",) and abs(result.phases[1].first - at) <= 20
    assert (result.phases[0].first, result.phases[-1].last) == (0, 1999)


@pytest.mark.parametrize("size", [1.0, 50.0])
@pytest.mark.parametrize("rounding", [1e-12, 1e-7])
def test_a_reading_that_moves_by_rounding_alone_is_left_out(tmp_path, size, rounding):
    source = random.Random(0)
    norm = [(step, size * (1 + rounding * source.gauss(0, 1))) for step in range(0, 500, 5)]
    result = found(stored(tmp_path / "s", loss=step_down(500, 200), weight_norm=norm))
    assert result.readings == ("loss",) and len(result.phases) == 2


def test_a_run_with_rounding_alone_says_that_nothing_changes(tmp_path):
    norm = [(step, 1 + 1e-9 * (step % 7)) for step in range(100)]
    with pytest.raises(ValueError, match="must have a reading that changes"):
        found(stored(tmp_path / "s", weight_norm=norm))


@pytest.mark.parametrize("every", [1, 7])
def test_samples_are_all_of_a_short_stretch_and_alike_of_a_long_one(tmp_path, every):
    rows = [(step, float(step) if step % 3 else math.nan) for step in range(0, 4000, every)]
    edges = [-1.0, 19.5, 20.25, 3999.0]
    with RunStore(stored(tmp_path / "s", loss=rows)) as store:
        short, shorter, long = store.samples(1, "loss", edges, 64)
        assert store.samples(1, "nothing", edges) == [[], [], []]
    finite = [value for _, value in rows if math.isfinite(value)]
    assert sorted(short) == [value for value in finite if value <= 19]
    assert shorter == [value for value in finite if value == 20]
    quarter = (3999 - 20.25) / 4
    for piece in range(4):
        low = 20.25 + piece * quarter
        inside = [value for value in finite if math.floor(low) < value <= math.floor(low + quarter)]
        assert [value for value in long if value in inside] == inside[:16]
    assert len(long) == 64
