"""A curve of few points shows what all readings would: every stretch's extremes, the first and the last."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from thalweg.watch import Reading, RunStore
from thalweg.watch._store_schema import WIDTHS


def values(count, seed=0):
    source = random.Random(seed)
    return [math.exp(-step / count) + 0.1 * source.gauss(0, 1) for step in range(1, count + 1)]


def filled(path, rows, batch=1000, layers=("a",)):
    """A store with one run and one name, written a batch at a time."""
    with RunStore(path, write=True) as store:
        run = store.begin("mine", {})
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            readings = [
                (0.0, Reading(step, "loss", value, dict.fromkeys(layers, 1.0))) for step, value in part
            ]
            store.write(run, part[-1][0], readings, [])
    return path


def coarse_table(store):
    query = "select series, width, bucket, low, low_step, high, high_step from coarse order by 1, 2, 3"
    return store.db.execute(query).fetchall()


def slowly(store):
    """The coarse table as a loop over all readings gives it; of equal extremes the earliest."""
    table = {}
    rows = store.db.execute("select series, step, value from readings order by rowid")
    for series, step, value in rows:
        if value is None or math.isinf(value):
            continue
        for width in WIDTHS:
            low, high = table.get((series, width, step // width), ((math.inf, 0), (-math.inf, 0)))
            low = (value, step) if value < low[0] else low
            high = (value, step) if value > high[0] else high
            table[series, width, step // width] = low, high
    return [(*key, *low, *high) for key, (low, high) in sorted(table.items())]


@pytest.mark.parametrize("count", [300, 5_000, 70_000])
@pytest.mark.parametrize("points", [8, 100, 601])
def test_spikes_ends_and_the_number_of_points_are_kept(tmp_path, count, points):
    rows = list(enumerate(values(count), 1))
    spikes = [(count // 3, 50.0), (count // 2, -50.0)]
    for step, value in spikes:
        rows[step - 1] = (step, value)
    with RunStore(filled(tmp_path / "s", rows)) as store:
        found = [(one.step, one.value) for one in store.overview(1, "loss", points)]
    assert len(found) <= points and set(spikes) <= set(found) <= set(rows)
    assert found == sorted(found) and found[0] == rows[0] and found[-1] == rows[-1]
    if count <= points:
        assert found == rows
    elif points >= 100:
        # Between two neighbours nothing lies outside of what the points about them show.
        steps = [step for step, _ in found]
        assert max(b - a for a, b in pairwise(steps)) <= 6 * count / points
        assert len(found) >= points / 4


def test_every_stretchs_extremes_are_there(tmp_path):
    rows = list(enumerate(values(20_000, seed=3), 1))
    with RunStore(filled(tmp_path / "s", rows, batch=777)) as store:
        found = {(one.step, one.value) for one in store.overview(1, "loss", 104)}
    width = -(-20_000 // 50)
    width = -(-width // 256) * 256
    for start in range(0, 20_000, width):
        part = [row for row in rows if start <= row[0] < start + width]
        assert min(part, key=lambda row: row[1]) in found and max(part, key=lambda row: row[1]) in found


@pytest.mark.parametrize("batch", [1, 17, 1000])
def test_the_kept_extremes_are_those_of_a_loop_over_all_readings(tmp_path, batch):
    rows = list(enumerate(values(1000, seed=1), 1))
    rows[10] = (11, math.nan)
    rows[20] = (21, math.inf)
    rows[30] = (31, -math.inf)
    rows = [(70 * step, value) for step, value in rows]
    with RunStore(filled(tmp_path / "s", rows, batch)) as store:
        assert coarse_table(store) == slowly(store)
        found = [one.value for one in store.overview(1, "loss", 5000)]
    assert found == [value for _, value in rows if math.isfinite(value)]


@pytest.mark.parametrize("step", [0, 1, 15, 16, 255, 4095, 4096, 5000, 9999, 10_000])
def test_a_resumed_run_has_the_curve_of_what_is_left(tmp_path, step):
    path = filled(tmp_path / "s", list(enumerate(values(10_000), 1)))
    with RunStore(path, write=True) as store:
        other = store.begin("other", {})
        store.write(other, 1, [(0.0, Reading(9_000, "loss", 1.0))], [])
        store.resume(1, step)
        assert coarse_table(store) == slowly(store)
        store.write(1, step + 50, [(0.0, Reading(step + k, "loss", -k)) for k in range(1, 51)], [])
        assert coarse_table(store) == slowly(store)
        assert store.overview(1, "loss")[-1] == Reading(step + 50, "loss", -50.0)
        assert store.overview(other, "loss") == [Reading(9_000, "loss", 1.0)]


def test_a_name_whose_layers_change_is_one_curve(tmp_path):
    rows = list(enumerate(values(4000), 1))
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {})
        for part, layer in ((rows[:2000], "a"), (rows[2000:], "b")):
            store.write(run, 1, [(0.0, Reading(s, "loss", v, {layer: 1.0})) for s, v in part], [])
        found = store.overview(run, "loss", 100)
        assert len(found) <= 100 and found[0].step == 1 and found[-1].step == 4000
        assert max(one.value for one in found) == max(value for _, value in rows)


def test_what_is_not_there_is_empty_and_too_few_points_are_refused(tmp_path):
    with RunStore(filled(tmp_path / "s", [(1, math.nan), (2, math.nan)])) as store:
        assert store.overview(1, "loss") == [] and store.overview(1, "none") == []
        assert store.overview(9, "loss") == []
        with pytest.raises(ValueError, match="points must be an integer >= 8, got 7"):
            store.overview(1, "loss", 7)
