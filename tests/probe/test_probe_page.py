"""The code in docs/probe.md runs as it stands, and its tables hold every probe at its declared cost."""

import re
from pathlib import Path

import pytest

from thalweg import probe

PAGE = (Path(__file__).parents[2] / "docs" / "probe.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
ROWS = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE, re.M))


def passes(cost: probe.Cost) -> str:
    kinds = ((cost.forwards, "forward"), (cost.backwards, "backward"), (cost.hvps, "product"))
    return ", ".join(f"{number} {kind}" for number, kind in kinds if number) or "none"


def test_the_blocks_run_one_after_the_other(capsys):
    names: dict = {}
    exec("\n".join(BLOCKS), names)
    out = capsys.readouterr().out
    products = [int(found) for found in re.findall(r"of 20, (\d+) products", out)]
    assert len(products) == 3 and products[0] <= 20 and max(products[1:]) <= 4
    assert sum(names["reading"].shares(names["model"])[0].values()) == pytest.approx(1)
    assert "{'fc1': 0.0}" in out


def test_every_probe_stands_in_the_tables_with_its_cost():
    probes = {name: getattr(probe, name) for name in dir(probe) if hasattr(getattr(probe, name), "cost")}
    assert {name: passes(one.cost) for name, one in probes.items()} == ROWS
