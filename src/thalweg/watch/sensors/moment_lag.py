"""Whether Adam's second moment keeps up with the gradient."""

from __future__ import annotations

import torch

from thalweg.probe import second_moment_lag
from thalweg.watch.moment import Moment, Raw, sensor


@sensor("second moment lag", share=0.5, every=1, passes=0.3, each=True)
def lag(at: Moment) -> list[Raw]:
    """Mean squared gradient over the second moment of the coming step, on a thousand entries a tensor."""
    # Before the first step there is no state, and with some optimizers never.
    if not at.optimizer.state or at.memory.get("none"):
        return []
    try:
        found = second_moment_lag(at.optimizer, at.named, scale=at.scale)
    except ValueError:
        # An optimizer that has stepped and keeps no second moment will keep none later.
        at.memory["none"] = bool(at.optimizer.state)
        return []
    return [
        Raw(
            "second moment lag",
            found.ratio,
            tuple(found.per_layer),
            torch.tensor(list(found.per_layer.values())),
        )
    ]
