"""The code in docs/continual.md runs as it stands."""

import re
import statistics
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "continual.md").read_text(encoding="utf8")


def test_plain_training_loses_plasticity_and_renewal_keeps_it(capsys):
    names: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(block, names)
    # 128 hidden units, nearly all of them mature after the first 50 of 1500 steps.
    assert names["replaced"] == pytest.approx(1e-3 * 128 * 1450, rel=0.1)
    plain, renewed = (statistics.median(names[kind][-5:]) for kind in ("plain", "renewed"))
    assert plain > 4 * names["plain"][0] and plain > 4 * renewed
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("loss at the end of the first task 0.0") and "units renewed on the way" in second
