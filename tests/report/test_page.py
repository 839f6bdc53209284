"""The report says what the store holds, whole or not at all."""

from __future__ import annotations

import re
import sqlite3

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


def test_a_run_that_is_named_twice_is_shown_once(store, tmp_path):
    once, twice = (
        write_report(store, tmp_path / f"{len(runs)}.html", runs=runs).read_text(encoding="utf8")
        for runs in ([1], [1, 1])
    )
    assert re.findall("<h2>.*?</h2>", twice) == re.findall("<h2>.*?</h2>", once)
    assert re.findall('aria-label="(.*?)"', twice) == ["Accuracy: test 1 at the end"]


def test_the_latest_run_is_the_default(store, tmp_path):
    page = write_report(store, tmp_path / "page.html").read_text(encoding="utf8")
    assert "two: no findings" in page
    assert "one: " not in page


@pytest.mark.parametrize(
    ("about", "words"), [({"lr": 0.1}, "Adafactor at learning rate 0.1; 0"), ({}, "Adafactor; 0")]
)
def test_a_learning_rate_is_told_where_there_is_one(tmp_path, about, words):
    with RunStore(tmp_path / "s", write=True) as store:
        store.begin("one", {"optimizer": "Adafactor", **about})
    assert words in write_report(tmp_path / "s", tmp_path / "page.html").read_text(encoding="utf8")


def test_what_was_left_out_is_a_list_of_one_line_each(tmp_path):
    left_out = {"sharpness": "never ran", "log <Z>": "ran every 9 steps rather than every 5"}
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("one", {"watching": 0.031, "left_out": left_out})
        store.end(run, "finished")
    page = write_report(tmp_path / "s", tmp_path / "page.html").read_text(encoding="utf8")
    assert "Watching took 3.1% of the training time.</p>" in page
    assert "<summary>Not measured as often as wished (2)</summary>" in page
    assert re.findall(r"<li>(.*)</li>", page) == [
        "sharpness never ran",
        "log &lt;Z&gt; ran every 9 steps rather than every 5",
    ]
    # Nothing was read, so nothing is announced that is not there.
    assert "Curves" not in page


@pytest.mark.filterwarnings("error")
def test_a_long_name_is_cut_where_a_plot_has_no_room_for_it(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        for name in ("x" * 300, "y" * 30):
            run = store.begin(name, {})
            store.write(run, 2, [(0.0, Reading(step, "weight norm", 1.0)) for step in (1, 2)], [])
    page = write_report(tmp_path / "s", tmp_path / "page.html", runs=[1, 2]).read_text(encoding="utf8")
    assert f"<h2>{'x' * 300}: no findings</h2>" in page
    assert f'aria-label="Weight norm: {"x" * 29}… 1; {"y" * 30} 1 at the end"' in page


@pytest.mark.filterwarnings("error")
def test_of_many_runs_a_plot_shows_some_and_says_so(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        for run in range(1, 31):
            store.begin(f"run {run}", {})
            both = ("train accuracy", "test accuracy", "weight norm")
            store.write(run, 2, [(0.0, Reading(step, one, 0.5)) for step in (1, 2) for one in both], [])
    every = list(range(1, 31))
    page = write_report(tmp_path / "s", tmp_path / "page.html", runs=every).read_text(encoding="utf8")
    accuracy, weights = re.findall(r'aria-label="(.*?)"', page)
    ends = "; ".join(f"run {run} test 0.5" for run in (1, 2, 3))
    assert accuracy == f"Accuracy: {ends} at the end (3 of 30 runs)"
    ends = "; ".join(f"run {run} 0.5" for run in range(1, 7))
    assert weights == f"Weight norm: {ends} at the end (6 of 30 runs)"
    assert page.count("<h2>run ") == 30


def test_a_picture_says_in_words_what_it_shows(store, tmp_path):
    page = write_report(store, tmp_path / "page.html", runs=[1]).read_text(encoding="utf8")
    assert re.findall(r'<div role="img" aria-label="(.*?)"><svg', page) == ["Accuracy: test 1 at the end"]


def test_findings_close_to_each_other_are_marked_and_only_the_first_is_named():
    line = Line("a", [Reading(step, "loss", 1.0) for step in range(1, 1001)], run=0)

    def marks(*steps):
        findings = [Finding("spike", step, "", {}, "info") for step in steps]
        svg = draw("t", "u", [line], findings)
        return svg.count("stroke-dasharray: 1.6,1.6"), svg.count('fill: #b3261e"')

    lone = marks(500)
    assert lone[0] == 1 and lone[1] > 0
    assert marks(700, 500) == (2, 2 * lone[1])
    assert marks(510, 500) == (2, lone[1])


def test_of_many_findings_the_first_of_each_name_are_shown_and_the_others_counted(tmp_path):
    with RunStore(tmp_path / "s", write=True) as opened:
        run = opened.begin("mine", {})
        opened.write(run, 5000, [(0.0, Reading(step, "loss", 1.0)) for step in (1, 5000)], [])
        spikes = [
            Finding("spike", step, "up", {}, "critical" if step > 2999 else "info") for step in range(3000)
        ]
        spikes = [*spikes[:7], FINDING, *spikes[7:], Finding("spike", 4000, "up", {}, "critical")]
        opened.write(run, 5000, [], spikes)
        opened.write(opened.begin("named", {}), 1, [], [Finding(f"no. {n}", n, "", {}) for n in range(900)])
    page = write_report(tmp_path / "s", tmp_path / "page.html", runs=[1]).read_text(encoding="utf8")
    assert "mine: 3,002 findings" in page
    found = re.findall(r"<h3>(.*?) <span class=\"quiet\">from step (\d+)", page)
    assert found == [("spike", f"{n}") for n in range(7)] + [("softmax collapse", "7")] + [
        ("spike", f"{n}") for n in range(7, 20)
    ]
    assert "<li>2,981 more of spike, 1 of them critical, from steps 20 to 4000</li>" in page
    assert page.count("stroke-dasharray: 1.6,1.6") == 21 and len(page) < 120_000
    named = write_report(tmp_path / "s", tmp_path / "page.html", runs=[2]).read_text(encoding="utf8")
    assert named.count("<h3>") == 200 and "<li>1 more of no. 200, from step 200</li>" in named
    assert "and others of 500 more names" in named and "no. 700" not in named


def test_a_finding_that_is_damaged_is_shown_as_such_and_does_not_cost_the_page(store, tmp_path):
    with sqlite3.connect(store) as db:
        db.execute("update findings set finding = '{'")
    db.close()
    with pytest.warns(UserWarning, match="row 1 of the findings of run 1 cannot be read"):
        page = write_report(store, tmp_path / "page.html", runs=[1]).read_text(encoding="utf8")
    assert "<h3>unreadable finding" in page and "one: 1 finding<" in page


def test_a_damaged_store_is_refused_in_words(store, tmp_path):
    with open(store, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (store.stat().st_size - 4096))
    with pytest.raises(ValueError, match=r"store '.*run.sqlite' (cannot be read|is no.*): .*malformed"):
        write_report(store, tmp_path / "page.html")
    assert not list(tmp_path.glob("page*"))


def test_of_many_runs_an_error_names_a_few(tmp_path):
    with RunStore(tmp_path / "s", write=True) as opened:
        for _ in range(30):
            opened.begin("mine", {})
    with pytest.raises(ValueError, match=r"run must be one of 1, 2, 3, \.\.\., 28, 29, 30, got 31$"):
        write_report(tmp_path / "s", tmp_path / "page.html", runs=[31])


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


def with_losses(path, values):
    with RunStore(path, write=True) as opened:
        run = opened.begin("one", {})
        opened.write(
            run, len(values), [(0.0, Reading(n, "loss", one)) for n, one in enumerate(values, 1)], []
        )
    return path


def test_a_loss_that_goes_below_zero_is_drawn_whole():
    falling = [Reading(step, "loss", 2.0 - step) for step in range(1, 9)]
    whole = draw("Loss", "loss", [Line("a", falling, 0)], log=True)
    assert whole == draw("Loss", "loss", [Line("a", falling, 0)])


def test_a_curve_that_ends_in_nan_says_from_where(tmp_path):
    store = with_losses(tmp_path / "s", [3.0, float("nan"), 2.0, 1.0, float("inf"), float("nan")])
    page = write_report(store, tmp_path / "page.html").read_text(encoding="utf8")
    assert re.findall('aria-label="(.*?)"', page) == ["Loss: train not finite from step 5 on"]
    store = with_losses(tmp_path / "t", [3.0, float("nan"), 2.0])
    page = write_report(store, tmp_path / "page.html").read_text(encoding="utf8")
    assert re.findall('aria-label="(.*?)"', page) == ["Loss"]
