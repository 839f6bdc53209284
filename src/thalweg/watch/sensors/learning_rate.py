"""The learning rate, whenever it has changed."""

from __future__ import annotations

from thalweg.watch.moment import Moment, Raw, sensor
from thalweg.watch.rates_by_group import noted

CHANGE = 0.01


@sensor("learning rate", share=0.1, every=1, passes=0.01, each=True)
def learning_rate(at: Moment) -> list[Raw]:
    """Of the first parameter group: at first, and when one is 1 % above or below what was last given.

    Those of all groups, where there are several, are in ``extra``.
    """
    groups = at.optimizer.param_groups
    if any(group.get("lr") is None for group in groups):
        return at.silent("the optimizer sets its learning rate itself")
    rates = [float(group["lr"]) for group in groups]
    last = at.memory.get("last", ())
    if len(last) == len(rates) and all(
        abs(rate - before) <= CHANGE * abs(before) for rate, before in zip(rates, last, strict=True)
    ):
        return []
    at.memory["last"] = rates
    return [Raw("learning rate", rates[0], extra=noted(groups))]
