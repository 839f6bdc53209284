"""What the measured column shows of an evidence file, and that a damaged file is named and harms nothing."""

import json
import os
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from thalweg.desk import evidence_rows, page_memory
from thalweg.desk.app import create_app
from thalweg.desk.evidence_rows import Row, damage, measured
from thalweg.papers import find
from thalweg.papers.status import evidence_folder, read_evidence
from thalweg.studies import plot


def row(effect, low, high, formula):
    return Row("setting", "test loss (a diverged run counts as 10): A / B", "", effect, low, high, formula)


def test_half_and_double_are_equally_far_from_no_difference():
    half, double = row(0.5, 0.5, 0.5, "baseline / method"), row(2, 2, 2, "baseline / method")
    assert double.interval[1] - 50 == pytest.approx(50 - half.interval[1]) and double.interval[1] > 50
    assert row(1, 0.5, 2, "baseline / method").interval[1] == pytest.approx(50)


def test_a_spread_that_holds_no_difference_crosses_the_middle_and_another_does_not():
    low, _, high = row(0.01, -0.02, 0.05, "method - baseline").interval
    assert 0 <= low < 50 < high <= 100 and (high - 50) / (50 - low) == pytest.approx(2.5)
    assert row(1.2, 1.1, 1.3, "method / baseline").interval[0] > 50


def test_effects_are_said_as_people_say_them():
    assert row(42440.7, 63.1, 600845.0, "baseline / method").size == "42,441×"
    assert (row(0.2938, 0.2, 0.3, "method - baseline").size, row(-0.5, -1, 0, "a - b").size) == (
        "+0.294",
        "-0.5",
    )
    assert row(1, 1, 1, "a / b").subject == "test loss"


@pytest.mark.parametrize("harm", ["spread", "seeds", "settings", "machine"])
def test_a_damaged_file_counts_as_not_measured_is_named_and_the_page_still_answers(
    harm, tmp_path, monkeypatch
):
    raw = read_evidence("spam")
    raw[harm] = 3
    (tmp_path / "spam.json").write_text(json.dumps(raw))
    monkeypatch.setattr(evidence_rows, "read_evidence", lambda key: read_evidence(key, tmp_path))
    monkeypatch.setattr(evidence_rows, "evidence_folder", lambda: tmp_path)
    assert measured(find("spam")) is None
    assert damage(find("spam")).startswith("spam.json is damaged")
    page = TestClient(create_app()).get("/papers/spam")
    assert page.status_code == 200 and "not measured yet" in page.text


def test_no_file_of_the_catalog_is_damaged_and_each_verdict_is_on_its_page():
    client = TestClient(create_app())
    keys = [path.stem for path in evidence_folder().glob("*.json")]
    assert keys and not [damage(find(key)) for key in keys if damage(find(key))]
    for key in keys[::13]:
        shown = set(re.findall(r'class="verdict [a-z-]+">([a-z ]+)<', client.get(f"/papers/{key}").text))
        assert {one["verdict"] for one in read_evidence(key)["settings"].values()} <= shown


def test_what_a_study_measures_while_the_desk_runs_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_rows, "read_evidence", lambda key: read_evidence(key, tmp_path))
    monkeypatch.setattr(evidence_rows, "evidence_folder", lambda: tmp_path)
    monkeypatch.setattr(page_memory, "LASTS", 0.0)
    client = TestClient(create_app())
    assert "not measured yet" in client.get("/papers/spam").text
    assert client.get("/api/papers/spam/evidence").status_code == 404
    plots = []
    for verdict in ("reproduced", "not reproduced"):
        raw = read_evidence("spam") | {"verdict": verdict}
        for number, one in enumerate(raw["settings"].values()):
            one["verdict"] = verdict if number == 0 else one["verdict"]
        monkeypatch.setattr(plot, "plot_evidence", drawing(verdict))
        (tmp_path / "new").write_text(json.dumps(raw))
        os.replace(tmp_path / "new", tmp_path / "spam.json")
        assert client.get("/api/papers/spam").json()["thalweg"]["verdict"] == verdict
        assert verdict in client.get("/papers/spam").text
        plots.append(client.get("/papers/spam/plot.svg").text)
    assert plots == ["<svg>reproduced</svg>", "<svg>not reproduced</svg>"]


def drawing(words):
    def draw(raw, path, setting):
        file = Path(path)
        file.write_text(f"<svg>{words}</svg>")
        return file

    return draw
