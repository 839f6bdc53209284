"""The code in docs/watch.md runs as it stands, and its tables say what the code does."""

import ast
import inspect
import re
import sys
from pathlib import Path

import torch
from torch import nn

import thalweg
from thalweg.watch import Sink, all_rules

PAGE = (Path(__file__).parents[2] / "docs" / "watch.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_loop_runs_and_finds_nothing_in_a_healthy_run(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"thalweg": thalweg, "model": small.model, "opt": small.opt, "loss_fn": small.loss_fn}
    names |= {"train": small.whole, "test": small.whole, "loader": [small.whole] * 5}
    exec(BLOCKS[0], names)
    assert capsys.readouterr().out.startswith("[] {")
    assert names["run"].step == 5 and (tmp_path / "runs" / "thalweg.sqlite").is_file()


def test_a_sink_of_ones_own_is_sent_everything(tmp_path, capsys):
    names = {}
    exec(BLOCKS[-1], names)
    assert issubclass(names["Printed"], Sink)
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with thalweg.watch(None, opt, sinks=[names["Printed"]()], store=None, name="mine") as run:
        run.log(loss=float("nan"))
        opt.step()
    out = capsys.readouterr().out
    assert out.startswith(
        "mine {'optimizer': 'SGD', 'adaptive': False, 'lr': 0.1, 'model': None, 'parameters': 1, "
        "'budget': 0.03}"
    )
    assert "1 {'thalweg/loss': nan}" in out and "[warning] not finite at step 1" in out


def severities():
    """Of each file of rules: the findings that it makes, and the severities that it names."""
    found = {}
    for rule in all_rules({}):
        source = inspect.getsource(sys.modules[type(rule).__module__])
        texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        named = texts & {"info", "warning", "critical"}
        found[rule.name, *rule.further] = named
    return found


def test_severities_on_the_page_are_those_of_the_code():
    table = re.findall(r"^\| ([^|]+?) \| [^|]+ \| ((?:info|warning|critical)[^|]*?) \|", PAGE, re.M)
    said = {name: set(re.split(", | to ", words)) for name, words in table}
    for words in said.values():
        if words == {"info", "critical"}:
            words.add("warning")
    assert said.keys() == {name for names in severities() for name in names}
    for names, found in severities().items():
        assert set().union(*(said[name] for name in names)) == found, names


def test_the_makefile_regenerates_the_page_of_rates_that_is_shipped():
    root = Path(__file__).parents[2]
    command = re.search(
        r"python -m benchmarks\.findings (--seeds \d+ \d+)",
        (root / "docs/finding-rates.md").read_text("utf8"),
    )
    assert f"benchmarks.findings {command[1]} " in (root / "Makefile").read_text("utf8")


def test_every_name_that_is_imported_exists():
    named = re.findall(r"from thalweg\.watch import (.*)", PAGE)
    assert len(named) == 3
    for name in ", ".join(named).split(", "):
        assert getattr(thalweg.watch, name).__doc__
