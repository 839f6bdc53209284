"""Attention logits that grow until each position sees one other position only (arXiv 2309.14322)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

LEVELS = ((100.0, "warning"), (1e4, "critical"))
TIMES = 4.0
FIRST = 5


class AttentionLogitGrowth(Rule):
    """The largest logit is above 100 twice in a row, and 4 times what it was at first; critical above 1e4.

    At first: the least of the first five readings, so that a model which starts with large logits is judged
    by its own. From about 1e4 on training has been seen to fail (arXiv 2309.14322).
    """

    name = "attention-logit growth"
    reads = ("attention logit",)

    def __init__(self, about):
        super().__init__(about)
        self.first: list[float] = []
        self.above: list[Reading] = []
        self.said = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        if not reading.finite:
            return
        if len(self.first) < FIRST:
            self.first.append(reading.value)
        least = max(LEVELS[0][0], TIMES * min(self.first))
        if reading.value <= least:
            self.above = []
            if reading.value < least / 2:
                self.said = 0
            return
        self.above.append(reading)
        level = 2 if min(one.value for one in self.above[-2:]) > max(LEVELS[1][0], least) else 1
        if len(self.above) < 2 or level <= self.said:
            return
        self.said = level
        threshold = max(LEVELS[level - 1][0], least)
        worst = sorted(reading.layers, key=lambda name: -reading.layers[name])
        yield Finding(
            self.name,
            self.above[0].step if level == 1 else reading.step,
            f"the largest attention logit is {reading.value:.3g}, at first it was {min(self.first):.3g}: the "
            "softmax picks one position and passes hardly any gradient back.",
            {"attention logit": reading.value, "at first": min(self.first), "threshold": threshold},
            LEVELS[level - 1][1],
            tuple(name for name in worst if reading.layers[name] > LEVELS[0][0])[:5],
            ("small-scale-proxies",),
            (
                Remedy(
                    "in a new run, normalise queries and keys",
                    "from torch.nn import functional as F\n"
                    "plain = F.scaled_dot_product_attention\n"
                    "def attend(query, key, *rest, **options):\n"
                    "    query, key = (F.layer_norm(x, x.shape[-1:]) for x in (query, key))\n"
                    "    return plain(query, key, *rest, **options)\n"
                    "F.scaled_dot_product_attention = attend  # by this name models call it\n"
                    "torch.backends.mha.set_fastpath_enabled(False)  # which would go past it",
                    "small-scale-proxies",
                ),
                Remedy(
                    "a lower learning rate",
                    "for group in opt.param_groups:\n    group['lr'] *= 0.1",
                    "small-scale-proxies",
                ),
            ),
        )
