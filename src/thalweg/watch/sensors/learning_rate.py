"""The learning rate, whenever it has changed."""

from __future__ import annotations

from thalweg.watch.moment import Moment, Raw, sensor

CHANGE = 0.01


@sensor("learning rate", share=0.1, every=1, passes=0.01, each=True)
def learning_rate(at: Moment) -> list[Raw]:
    """Of the first parameter group: at first, and when it is 1 % above or below what was last given."""
    rate = float(at.optimizer.param_groups[0].get("lr", 0.0))
    last = at.memory.get("last")
    if last is not None and abs(rate - last) <= CHANGE * abs(last):
        return []
    at.memory["last"] = rate
    return [Raw("learning rate", rate)]
