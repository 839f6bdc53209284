"""Learning rates of an optimizer's parameter groups, as readings carry them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg.watch.readings import Reading

__all__ = ["group_rates", "noted", "sharpened"]

RATE, SHARE = "rate of group {}", "share of group {}"


def noted(groups: Sequence[dict[str, Any]], shares: Sequence[float] = ()) -> dict[str, float]:
    """For a reading's ``extra``: the rate of each group, and its ``shares`` if given; empty for one group."""
    if len(groups) < 2:
        return {}
    extra = {RATE.format(index): float(group.get("lr") or 0.0) for index, group in enumerate(groups)}
    return extra | {SHARE.format(index): share for index, share in enumerate(shares)}


def group_rates(reading: Reading, first: float) -> list[float]:
    """The rate of each group at a reading; ``[first]`` of an optimizer with one."""
    found: list[float] = []
    while (rate := reading.extra.get(RATE.format(len(found)))) is not None:
        found.append(rate)
    return found or [first]


def sharpened(sharp: Reading, rates: Sequence[float]) -> float:
    r"""How many times at least sharpness over its limit grows when groups go to ``rates``.

    Each parameter's rate is part of the sharpness: :math:`D^{1/2} H D^{1/2}`. With the leading eigenvector's
    share :math:`s_k` in group k, and that group's rate :math:`c_k` times what it was, the same direction
    tells :math:`1 / \sum_k s_k / c_k`, which is exact where all rates change alike.
    """
    before = group_rates(sharp, sharp.extra["lr"])
    if len(before) != len(rates):
        return 1.0
    left = 0.0
    for index, (old, new) in enumerate(zip(before, rates, strict=True)):
        share = sharp.extra.get(SHARE.format(index), 1.0 / len(before))
        if share > 0 and old > 0:
            left += share * old / new if new > 0 else float("inf")
    return 1 / left if left > 0 else 1.0
