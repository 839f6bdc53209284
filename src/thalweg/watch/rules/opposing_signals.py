"""Two small groups of examples whose losses swing against each other (arXiv 2311.04163)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from thalweg.watch.readings import Finding, Reading
from thalweg.watch.remedies import clip, instead, lower
from thalweg.watch.rule import Rule

SHARE = 0.3
TIMES = 3.0
AGAINST = -0.8
MOST = 0.6
SURELY_AGAINST = -0.95
RISE = 0.2
HIGH = 0.5
IN_A_ROW = 3


class OpposingSignals(Rule):
    """Groups of a 32nd each that carry 0.3 of a rise and are correlated below -0.8, three times in a row.

    The share counts if it is three times that of as many examples with the highest loss: those change much
    whatever they are, and late in training carry most of all loss. The mean of the one group must have risen
    by 0.2 of the first loss, which a run that has arrived never does; of the loss of guessing, where a run
    began with a better one. Where the groups are the examples of highest loss, because the run cannot settle
    on them, they have to carry 0.6 and rise by half of that loss, at a correlation below -0.95. The
    correlation is that of the groups' changes in all visits but the one that chose them.
    """

    name = "opposing signals"
    reads = ("opposing signals",)

    def __init__(self, about):
        super().__init__(about)
        self.near: list[Reading] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        extra = reading.extra
        if self.said or not (reading.finite and self._swings(reading)):
            self.near = []
            return
        self.near.append(reading)
        if len(self.near) < IN_A_ROW:
            return
        self.said = True
        rising, falling = (_members(extra, name) for name in ("rising", "falling"))
        members = {key: value for key, value in extra.items() if key.startswith(("rising ", "falling "))}
        yield Finding(
            self.name,
            self.near[0].step,
            f"of the first {extra['examples']:.0f} examples, numbers {rising} rise when {falling} fall and "
            f"back (correlation {reading.value:.2f}): these few carry {extra['share']:.0%} of the change of "
            f"all losses, the {2 * int(extra['group'])} with the highest loss "
            f"{extra['top loss share']:.0%}.",
            {
                "correlation": reading.value,
                "share": extra["share"],
                "threshold": SHARE,
                "top loss share": extra["top loss share"],
                **members,
            },
            "warning",
            (),
            ("opposing-signals",),
            (
                clip(
                    self.about,
                    1.0,
                    "opposing-signals",
                    ", so that a group that swings cannot take long steps",
                ),
                lower(4, "a lower learning rate: small steps do not swing", "opposing-signals"),
                instead(
                    "Adam, whose steps such groups sway less",
                    "AdamW(groups)",
                    "opposing-signals",
                    min(self.lr, 1e-3),
                ),
            ),
        )

    @staticmethod
    def _swings(reading: Reading) -> bool:
        extra = reading.extra
        scale = max(extra["first loss"], extra.get("loss by chance", 0.0))
        if extra["rise"] < RISE * scale or extra["fall"] >= 0:
            return False
        few = extra["share"] > SHARE and extra["share"] > TIMES * extra["top loss share"]
        most = extra["share"] > MOST and extra["rise"] > HIGH * scale
        return (most and reading.value < SURELY_AGAINST) or (few and reading.value < AGAINST)


def _members(extra: Mapping[str, float], name: str) -> str:
    numbers = sorted(int(value) for key, value in extra.items() if key.startswith(f"{name} "))
    return ", ".join(map(str, numbers))
