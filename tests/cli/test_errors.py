"""What a user gets wrong is answered by one line and exit code 2."""

from __future__ import annotations

import sqlite3

import pytest
from typer.testing import CliRunner

from thalweg.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output + result.stderr
    return result.stderr


def test_a_missing_script_is_named():
    assert "'train.py': no such file" in refused("run", "train.py")


def test_what_is_no_script_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "script must be a Python file, got 'folder': a folder" in refused("run", "folder")
    for module in ("no.such.module", "folder", "train.py"):
        said = refused("run", "-m", module)
        assert f"script must be a module that can be run from here, got {module!r}" in said


def test_a_budget_below_zero_is_named(tmp_path):
    (tmp_path / "train.py").write_text("")
    assert "budget must be in [0, inf), got -1.0" in refused("run", "--budget", "-1", "train.py")


def test_a_store_that_is_not_a_database_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train.py").write_text("")
    assert "not a run store" in refused("run", "--store", "notes.txt", "train.py")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("create table mine (x)")
    before = (tmp_path / "other.db").read_bytes()
    assert "not a run store" in refused("report", "other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_missing_store_is_named():
    assert "no such file" in refused("report", "nothing.sqlite")


def test_a_page_that_cannot_be_written_is_named_before_the_script_runs(tmp_path):
    (tmp_path / "train.py").write_text("open('ran', 'w').close()")
    (tmp_path / "taken").write_text("")
    said = refused("run", "--report", "taken/page.html", "train.py")
    assert "--report must be a file that can be written, got 'taken/page.html': File exists" in said
    assert "--report must be a file that can be written, got '.': it is a folder" in refused(
        "run", "--report", ".", "train.py"
    )
    assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("*.part"))


def test_where_a_report_cannot_go_is_named(tmp_path):
    assert "--out must be a file that can be written, got '.': it is a folder" in refused(
        "report", "--out", "."
    )


def test_an_option_that_thalweg_run_does_not_have_is_named(tmp_path):
    (tmp_path / "train.py").write_text("")
    assert "No such option: --bugdet" in refused("run", "--bugdet", "1", "train.py")


def test_the_demo_needs_a_folder_it_can_write(tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in refused("demo", "--folder", "taken")


@pytest.mark.parametrize("arguments", [("papers", "show", "grokfst"), ("study", "run", "grokfst")])
def test_an_unknown_key_brings_near_ones(arguments):
    assert "grokfast" in refused(*arguments)


def test_unknown_commands_and_options_are_refused():
    assert refused("frobnicate")
    assert refused("papers", "--frobnicate")


def test_version_is_printed():
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, "thalweg 0.1.0\n")
