"""The code on merging in docs/surgery.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "surgery.md").read_text(encoding="utf8")


def test_the_matched_average_is_far_better_than_the_plain_one(capsys):
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "import align" in one)
    names: dict = {}
    exec(block, names)
    out = capsys.readouterr().out
    losses = {name: float(value) for name, value in re.findall(r"(\w+): loss ([\d.]+)", out)}
    assert list(losses) == ["first", "plain", "matched", "repaired"]
    assert losses["matched"] - losses["first"] < 0.5 * (losses["plain"] - losses["first"])
    assert names["report"].distance[1] < names["report"].distance[0] and "2 groups of units" in out
