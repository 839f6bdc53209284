"""The report says what the store holds, whole or not at all."""

from __future__ import annotations

import re

import pytest

from thalweg.report import Line, draw, write_report
from thalweg.watch import Finding, Reading, Remedy, RunStore

FINDING = Finding(
    "softmax collapse",
    7,
    "half of <all> examples",
    {"collapsed": 0.5, "threshold": 0.05},
    "critical",
    ("head.weight",),
    ("softmax-collapse", "no-such-paper"),
    (Remedy("project", "opt = optim.PerpGrad(model.parameters(), lr=0.1)", "softmax-collapse"),),
)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "run.sqlite"
    with RunStore(path, write=True) as opened:
        for name in ("one", "two"):
            run = opened.begin(name, {"optimizer": "AdamW", "lr": 0.1, "model": "Net", "parameters": 1234})
            readings = [(0.0, Reading(step, "test accuracy", step / 10)) for step in range(1, 11)]
            opened.write(run, 10, readings, [FINDING] if name == "one" else [])
            opened.end(run, "finished")
    return path


def test_a_finding_is_shown_with_numbers_papers_and_code_escaped(store, tmp_path):
    page = write_report(store, tmp_path / "page.html", runs=[1]).read_text(encoding="utf8")
    assert "half of &lt;all&gt; examples" in page
    assert "opt = optim.PerpGrad(model.parameters(), lr=0.1)" in page
    assert "Grokking at the Edge of Numerical Stability" in page
    assert "no-such-paper" in page
    assert "head.weight" in page


def test_two_runs_are_compared_and_the_title_of_a_plot_gives_where_they_ended(store, tmp_path):
    page = write_report(store, tmp_path / "page.html", runs=[1, 2]).read_text(encoding="utf8")
    assert "one: 1 finding" in page
    assert "two: no findings" in page
    assert page.count("<svg") == 1


def test_the_latest_run_is_the_default(store, tmp_path):
    page = write_report(store, tmp_path / "page.html").read_text(encoding="utf8")
    assert "two: no findings" in page
    assert "one: " not in page


def test_an_unknown_run_is_refused_and_nothing_is_written(store, tmp_path):
    with pytest.raises(ValueError, match="run must be one of 1, 2, got 9"):
        write_report(store, tmp_path / "page.html", runs=[9])
    assert not list(tmp_path.glob("page*"))


def test_an_empty_store_is_refused(tmp_path):
    RunStore(tmp_path / "empty.sqlite", write=True).close()
    with pytest.raises(ValueError, match="holds no run yet"):
        write_report(tmp_path / "empty.sqlite", tmp_path / "page.html")


def test_a_write_that_fails_leaves_the_old_page(store, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_report(store, page)
    assert page.read_text() == "old"
    assert [file.name for file in tmp_path.glob("*.part")] == []


def test_the_same_curves_make_the_same_picture():
    lines = [Line("a", [Reading(step, "loss", 1 / step) for step in range(1, 9)], run=0)]
    assert draw("title", "unit", lines) == draw("title", "unit", lines)


def test_what_is_not_finite_or_not_positive_is_left_out_of_a_logarithmic_plot():
    values = (1.0, float("nan"), 0.0, 0.5)
    readings = [Reading(step, "loss", value) for step, value in enumerate(values)]
    kept = [Reading(0, "loss", 1.0), Reading(3, "loss", 0.5)]
    assert draw("t", "u", [Line("a", readings, run=0)], log=True) == draw(
        "t", "u", [Line("a", kept, run=0)], log=True
    )


def test_the_compared_run_is_grey():
    lines = [
        Line(str(run), [Reading(1, "x", 1.0), Reading(2, "x", 2.0), Reading(3, "x", 1.0)], run)
        for run in (0, 1)
    ]
    svg = draw("t", "u", lines)
    assert re.search(r"stroke: #8a8a8a", svg)
    assert re.search(r"stroke: #0b5fa5", svg)
