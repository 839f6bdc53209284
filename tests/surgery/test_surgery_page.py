"""The code in docs/surgery.md runs as it stands, and says what the page says."""

import re
from pathlib import Path

import pytest
import torch
from benchmarks.minilm_surgery import BEGIN, END, replaced

import thalweg.surgery

PAGE = (Path(__file__).parents[2] / "docs" / "surgery.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def ran(start: str, capsys) -> tuple[dict, str]:
    (block,) = (block for block in BLOCKS if start in block)
    names: dict = {}
    exec(block, names)
    return names, capsys.readouterr().out


def test_half_the_weights_go_and_the_losses_are_those_of_the_copies(capsys):
    names, out = ran("factorize, prune, quantize", capsys)
    assert "50.0% of 4096 weights zero, 16,640 -> 8,960 bytes" in out
    losses = {name: float(loss) for name, loss in re.findall(r"(\w+): loss ([\d.]+)", out)}
    assert list(losses) == ["dense", "pruned", "rounded", "thin"]
    assert losses["dense"] < losses["rounded"] < losses["dense"] + 0.05
    assert losses["dense"] < losses["pruned"] < 1 and losses["dense"] < losses["thin"] < 1.38
    weight = names["pruned"][2].weight
    assert int((weight == 0).sum()) == weight.numel() // 2 and bool((names["model"][2].weight != 0).all())
    assert names["thin"][2].rank < 32 and names["rounded"][2].bits == 4


def test_rounds_drop_a_fifth_each_and_go_on_learning(capsys):
    names, out = ran("prune_in_rounds", capsys)
    shares = [int(share) for share in re.findall(r"(\d+)% of the weights left", out)]
    assert shares == [100, 80, 64, 51, 41, 33]
    assert min(float(a) for a in re.findall(r"accuracy ([\d.]+)", out)) > 0.9
    assert 0 < names["last"].density < 1
    assert torch.cat([m.flatten() for m in names["last"].masks.values()]).float().mean() == pytest.approx(
        names["last"].density
    )


def test_the_names_that_the_page_imports_are_documented():
    imported = re.findall(r"from thalweg\.surgery import (.*)", PAGE)
    assert len(imported) >= 2
    for name in ", ".join(imported).split(", "):
        assert getattr(thalweg.surgery, name).__doc__


def test_measured_tables_go_between_their_marks_and_nothing_else_changes():
    begin, end = PAGE.index(BEGIN) + len(BEGIN), PAGE.index(END)
    assert replaced(PAGE, PAGE[begin:end]) == PAGE
    assert replaced(PAGE, "| new |\n") == PAGE[:begin] + "| new |\n" + PAGE[end:]
    for wrong in (PAGE.replace(BEGIN, ""), PAGE.replace(END, ""), PAGE + BEGIN + END):
        with pytest.raises(ValueError, match=r"surgery\.md must have one place between <!-- measured by "):
            replaced(wrong, "")
