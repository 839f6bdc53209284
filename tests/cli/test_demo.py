"""The main job: one command shows a run failing, the finding, the remedy and its effect."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.watch import RunStore


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "thalweg", "demo"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=800
    ), folder / "runs/demo"


def test_the_trouble_is_named_while_it_happens(demo):
    done, _ = demo
    assert done.returncode == 0, done.stderr
    assert re.search(r"memorised, not generalising at step \d+", done.stdout)
    assert re.search(r"\[critical\] softmax collapse at step \d+|\[warning\] softmax collapse", done.stdout)


def test_the_remedy_that_the_finding_names_brings_the_test_accuracy_from_chance_to_one(demo):
    done, folder = demo
    row = next(line for line in done.stdout.splitlines() if line.startswith("│ test accuracy "))
    before, after = map(float, re.findall(r"\d\.\d+", row))
    assert before < 0.05
    assert after > 0.95
    with RunStore(folder / "run.sqlite") as store:
        first, second = store.runs()
        code = {remedy.code for one in store.findings(first.id) for remedy in one.remedies}
    assert second.about["optimizer"] == "PerpGrad"
    assert any("optim.PerpGrad" in one for one in code)


def test_the_last_line_is_the_command_that_shows_these_runs_on_the_desk(demo):
    done, folder = demo
    said = re.fullmatch(r"live pages: thalweg desk --store (\S+)", done.stdout.splitlines()[-1])
    store = folder.parents[1] / said[1]
    assert store == folder / "run.sqlite"
    client = TestClient(create_app(store))
    assert 'href="/runs/2"' in client.get("/runs").text
    # The desk's own words for it, where it has no runs.
    empty = TestClient(create_app(folder / "none.sqlite")).get("/runs").text
    assert f"thalweg demo\nthalweg desk --store {said[1]}<" in empty


def test_the_report_stands_alone_and_holds_findings_remedies_and_plots(demo):
    done, folder = demo
    page = (folder / "report.html").read_text(encoding="utf8")
    assert f"report: {'runs/demo/report.html'}" in done.stdout
    assert page.count("<svg") >= 5
    assert "opt = optim.PerpGrad(groups)" in page
    assert not re.search(r"<(script|link|img)\b", page)
    assert not re.search(r"""(src|href)=["'](?!https://arxiv\.org|#)""", page)
