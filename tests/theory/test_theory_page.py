"""The code in docs/theory.md runs as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import thalweg.theory
from thalweg.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "theory.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def ran(block: int, capsys) -> tuple[dict, str]:
    names: dict = {}
    exec(BLOCKS[block], names)
    return names, capsys.readouterr().out


def test_the_forecast_finds_the_numbers_behind_the_logged_curves(capsys):
    names, out = ran(0, capsys)
    law, end = names["law"], names["end"]
    assert law.decay == 0.99 and law.cooling == pytest.approx(0.8, abs=0.02)
    rates = names["peak"] * names["np"].linspace(1, 0.001, names["steps"])
    forward, annealing = thalweg.theory.annealing_areas(rates, 0.99)
    truth = 2.6 + 0.4 * forward[-1] ** -0.5 - 0.8 * annealing[-1]
    assert abs(end.loss[0] - truth) < 4 * end.error[0] < 0.01
    assert re.fullmatch(r"cooldown over \d+%; a linear decay ends at \d\.\d{4} ± 0\.\d{4}\n", out)


def test_the_command_forecasts_the_run_that_was_just_logged(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran(1, capsys)
    (command,) = re.findall(r"```sh\nthalweg (.*?)\n```", PAGE, re.DOTALL)
    result = CliRunner().invoke(app, shlex.split(command.replace("\\\n", "")))
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if re.match("wsd|linear|cosine", line)]
    assert [row[0] for row in rows] == ["wsd:cooldown=0.3", "linear", "cosine:steps=1200"]
    assert [row[1:3] for row in rows] == [["600", "0.01"], ["600", "0.01"], ["1200", "0.01"]]
    # Of the variance of the targets, about 0.75, the noise's 0.25 stays.
    assert all(0.2 < float(row[-2]) < 0.8 and 0 < float(row[-1]) < 0.1 for row in rows)
    assert (tmp_path / "runs" / "forecast.png").stat().st_size > 10_000


def test_the_bound_prefers_the_longer_cooldown_and_smaller_rates_for_longer_runs(capsys):
    best, transferred, factor = ran(2, capsys)[1].splitlines()
    fifth, whole = map(float, best.split())
    assert whole < fifth and 0 < float(transferred) < 3e-4 and 0 < float(factor) < 1


def test_the_surge_law_passes_through_the_known_rate(capsys):
    found = ran(3, capsys)[0]["found"]
    assert found.rates[0] == pytest.approx(1e-3) and found.beyond_peak.tolist() == [False, False, False, True]


def test_modes_are_half_learned_when_the_page_says(capsys):
    names, out = ran(4, capsys)
    assert out.count("half learned after") == 3
    curve = names["mode_curve"](2.0, 0.01, [names["half"]], depth=3, tau=1e3)
    assert curve[0] == pytest.approx(1.0, rel=1e-6)


def test_the_names_that_the_page_imports_are_documented():
    imported = re.findall(r"from thalweg\.theory import (.*)", PAGE)
    assert len(imported) == 4
    for name in ", ".join(imported).split(", "):
        assert getattr(thalweg.theory, name).__doc__
