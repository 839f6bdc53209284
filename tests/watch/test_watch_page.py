"""The code in docs/watch.md runs as it stands."""

import re
from pathlib import Path

import torch
from torch import nn

import thalweg
from thalweg.watch import Sink

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
    assert out.startswith("mine {'optimizer': 'SGD', 'lr': 0.1, 'model': None, 'parameters': 1}")
    assert "1 {'thalweg/loss': nan}" in out and "[critical] not finite at step 1" in out


def test_every_name_that_is_imported_exists():
    named = re.findall(r"from thalweg\.watch import (.*)", PAGE)
    assert len(named) == 3
    for name in ", ".join(named).split(", "):
        assert getattr(thalweg.watch, name).__doc__
