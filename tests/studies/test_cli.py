"""The terminal's view: answers on stdout, mistakes in one line on stderr with exit code 2."""

import pytest
from typer.testing import CliRunner

from thalweg.studies import runner
from thalweg.studies.cli import app


@pytest.fixture
def run(toys, tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg._core.terminal.WIDE", 400)
    folders = ["--studies", str(toys), "--evidence", str(tmp_path / "evidence")]
    return lambda command, *rest: CliRunner().invoke(app, [command, *rest, *folders])


def test_a_study_is_listed_before_and_after_it_is_run(run):
    before = run("list")
    assert before.exit_code == 0
    assert "not run" in before.stdout and before.stdout.splitlines()[-1] == "1 study"
    result = run("run", "toy-quadratic")
    assert result.exit_code == 0
    assert "toy-quadratic: reproduced" in result.stdout
    assert "tuned: small / large = 6.19 (from 6.19 to 6.19): reproduced" in result.stdout
    row = next(line for line in run("list").stdout.splitlines() if line.startswith("toy-quadratic"))
    assert "A larger step gets further." in row and "reproduced" in row and "6.19" in row


def test_a_malformed_file_is_said_in_the_list(run, tmp_path):
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "toy-quadratic.json").write_text("{}")
    assert "unreadable: toy-quadratic.json: field 'paper' is missing" in run("list").stdout


def test_of_all_studies_one_that_fails_stops_no_other(run, toys):
    text = (toys / "toy_quadratic.py").read_text().replace("toy-quadratic", "toy-broken")
    (toys / "toy_broken.py").write_text(text.replace("norms = [x.norm().item()]", "norms = missing"))
    result = run("run", "--all")
    assert result.exit_code == 1
    assert "toy-quadratic: reproduced" in result.stdout
    assert "thalweg study: toy-broken failed: name 'missing' is not defined" in result.stderr.splitlines()


def test_jobs_are_handed_to_the_pool(run, toys, tmp_path, monkeypatch):
    asked = {}

    def pool(keys, **options):
        asked.update(options, keys=keys)
        yield keys[0], RuntimeError("no memory")

    monkeypatch.setattr(runner, "run_studies", pool)
    result = run("run", "--all", "--jobs", "2", "--seeds", "4")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "thalweg study: toy-quadratic failed: no memory"
    assert asked == {
        "keys": ("toy-quadratic",),
        "jobs": 2,
        "seeds": 4,
        "folder": tmp_path / "evidence",
        "studies": toys,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "toy-quadratc"), "no study has the key 'toy-quadratc' (did you mean toy-quadratic?)"),
        (("run",), "name one study, or give --all"),
        (("run", "toy-quadratic", "--all"), "name one study, or give --all"),
        (("run", "toy-quadratic", "--seeds", "2"), "--seeds must be at least 3, got 2"),
        (("run", "--all", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("plot", "toy-quadratic", "x.png"), "toy-quadratic was not run yet"),
        (("plot", "toy-quadratc", "x.png"), "did you mean toy-quadratic"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("thalweg study: ") and said in line
    assert "Traceback" not in result.output


def test_plot_writes_the_picture(run, tmp_path):
    run("run", "toy-quadratic")
    assert run("plot", "toy-quadratic", str(tmp_path / "p.svg")).exit_code == 0
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
