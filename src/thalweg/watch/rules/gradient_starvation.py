"""One feature a class answers every example, and no gradient is left for others (arXiv 2011.09468)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import penalised
from thalweg.watch.rule import Rule

MISS = 0.05
HELD = 0.9
SCATTER = 0.25
JUDGED = 3
OPEN = 0.2


class GradientStarvation(Rule):
    """As the mean miss falls below 0.05, the strongest features hold 0.9 of what all margins share.

    One feature a class is counted, and the margins must scatter by less than 0.25 of their mean: in an
    ordinary run examples are answered by many features, some well and some hardly. Judged in the first three
    readings below 0.05 of a run that was seen above 0.2: late in any run, when classes have collapsed to
    points, it looks the same. Other features at least a tenth as strong must be there. Whether they are of
    use nobody can tell from the training data, hence ``info``: an easy task looks like a shortcut.
    """

    name = "gradient starvation"
    reads = ("strongest features",)

    def __init__(self, about):
        super().__init__(about)
        self.most = 0.0
        self.judged = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        extra = reading.extra
        if not reading.finite or self.judged >= JUDGED:
            return
        miss = extra["miss"]
        self.most = max(self.most, miss)
        if miss >= MISS or self.most < OPEN:
            return
        self.judged += 1
        if reading.value < HELD or not extra["scatter"] < SCATTER or extra["others"] < 1:
            return
        self.judged = JUDGED
        yield Finding(
            self.name,
            reading.step,
            f"the {extra['features']:.0f} strongest features give every example its margin "
            f"({extra['share']:.0%} of it, scatter {extra['scatter']:.2f}); {extra['others']:.0f} others at "
            f"least a tenth as strong have {miss / self.most:.1%} of their gradient left and will hardly be "
            "learnt: right if these few are what the model should use, wrong if they are a shortcut.",
            {
                "held by the strongest": reading.value,
                "threshold": HELD,
                "scatter of margins": extra["scatter"],
                "share of margins": extra["share"],
                "miss": miss,
                "most missed": self.most,
                "other features": extra["others"],
            },
            "info",
            (),
            ("gradient-starvation",),
            (
                Remedy(
                    "a penalty on the logits in place of weight decay, so that no feature takes it all",
                    penalised("nn.spectral_decoupling(logits, 0.1)"),
                    "gradient-starvation",
                ),
            ),
        )
