"""Features have shrunk to their class means (arXiv 2008.08186, 2210.16658)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import kept
from thalweg.watch.rule import Rule

VARIABILITY = 0.05
SHRUNK = 1 / 3
DISAGREEING = 0.01
UNEQUAL = 0.15
IN_A_ROW = 3


class NeuralCollapse(Rule):
    """Three readings in a row with every training example right and the signs of collapse.

    Scatter within classes at most 0.05 of that between them (features below transfer badly, see
    :func:`thalweg.probe.neural_collapse`) and a third of what it was when all were first right, since classes
    may be as tight in the inputs; class means as far from their centre as each other, with a spread of 15 %;
    and the nearest class mean giving the network's answer for 99 % of the examples.
    """

    name = "neural collapse reached"
    reads = ("neural collapse",)

    def __init__(self, about):
        super().__init__(about)
        self.collapsed: list[Reading] = []
        self.first: Reading | None = None
        self.said = False

    def _bound(self) -> float:
        first = self.first.value if self.first else 0.0
        return min(VARIABILITY, SHRUNK * first)

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said or not reading.finite:
            return
        extra = reading.extra
        if self.first is None and extra["error"] == 0:
            self.first = reading
        signs = (
            extra["error"] == 0
            and reading.value <= self._bound()
            and extra["norms"] <= UNEQUAL
            and extra["nc4"] <= DISAGREEING
        )
        self.collapsed = [*self.collapsed, reading] if signs else []
        if len(self.collapsed) < IN_A_ROW:
            return
        assert self.first is not None
        self.said = True
        yield Finding(
            self.name,
            self.collapsed[0].step,
            f"scatter within classes is {reading.value:.2g} of that between them; it was "
            f"{self.first.value:.2g} at step {self.first.step}, when the training examples were first all "
            f"right: the features tell the {extra['classes']:.0f} classes apart and little else.",
            {
                "variability": reading.value,
                "threshold": self._bound(),
                "at first fit": self.first.value,
                **{name: extra[name] for name in ("nc1", "nc2", "nc3", "nc4")},
            },
            "info",
            tuple(reading.layers),
            ("neural-collapse",),
            (
                kept(
                    "run again and keep the weights of here: the training labels have no more to teach",
                    (self.collapsed[0].step,),
                    "neural-collapse",
                ),
                Remedy(
                    "less decay, which drives the collapse, where the features are to serve another task",
                    "for group in opt.param_groups:\n"
                    "    if group.get('weight_decay'):\n"
                    "        group['weight_decay'] *= 0.1",
                    "neural-collapse",
                ),
            ),
        )
