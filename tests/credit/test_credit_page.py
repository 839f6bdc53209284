"""The code in docs/credit.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "credit.md").read_text(encoding="utf8")


def test_the_loss_falls_by_forward_gradients_alone(capsys):
    names: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(block, names)
    assert names["losses"][-1] < 0.6 * names["losses"][0]
    # 4 * 8 + 8 + 8 + 1 = 49 numbers, and 50 / 16 = 3.1.
    assert capsys.readouterr().out.startswith("49 numbers, variance 3.1 times the squared gradient, loss ")
