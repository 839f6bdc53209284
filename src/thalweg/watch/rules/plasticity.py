"""Loss of plasticity: each new set of targets is learnt more slowly than the last (arXiv 2303.01486)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, median

from thalweg.watch.readings import Finding, Reading
from thalweg.watch.remedies import renewed
from thalweg.watch.rule import Rule
from thalweg.watch.rules.vanishing_gradient import normalise

# A change of the targets: three losses above the median of the last twenty, by so many spreads and so much.
BEFORE = 20
AFTER = 3
SPREADS = 5.0
JUMP = 1.2
COMPARED = 2
LEAST = 20
SLOWER = 1.3
LONGEST = 200
STUCK = 3
DORMANT = 0.05
FALLEN = 0.8
LOST = 1.5


class LossOfPlasticity(Rule):
    """After a change of the targets the loss stays 1.3 times higher than it did after the first changes.

    A change is a sudden lasting rise of the logged loss. Of the same number of steps behind each the second
    half gives a mean loss; the last two changes are compared with the first two, and both must be worse than
    both. A loss that is as high after three times as many steps stands for two. The features have to tell the
    same: their effective rank has fallen by a fifth, or 0.05 more of the units are dormant, than at the
    second change. Harder targets alone are none of it, and no more is a loss far above all that was seen
    behind the first two changes: new targets do not make a network that wrong, divergence does.
    """

    name = "loss of plasticity"
    reads = ("loss", "dormant units", "feature rank", "weight norm")

    def __init__(self, about):
        super().__init__(about)
        self.recent: deque[Reading] = deque(maxlen=BEFORE + AFTER)
        self.episodes: list[tuple[int, list[float]]] = []
        self.now: dict[str, Reading] = {}
        self.first: dict[str, Reading] = {}
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said or not reading.finite:
            return
        if reading.name != "loss":
            self.now[reading.name] = reading
            if self.episodes:
                self.first.setdefault(reading.name, reading)
            return
        # Below zero a loss has no scale that a factor could be of.
        self.said = reading.value < 0
        self.recent.append(reading)
        if self.episodes and len(self.episodes[-1][1]) < STUCK * LONGEST:
            self.episodes[-1][1].append(reading.value)
            scores = self._scores()
            if scores is not None:
                early, late = scores
                signs = self._signs()
                if fmean(late) > LOST * max(max(losses[:AFTER]) for _, losses in self.episodes[:COMPARED]):
                    return
                if min(late) > max(early) and fmean(late) > SLOWER * fmean(early) and signs:
                    self.said = True
                    yield self._finding(fmean(early), fmean(late), signs)
                    return
        if self._changed():
            self._begin()

    def _begin(self) -> None:
        """The losses that told of a change are the first of a new episode."""
        if len(self.episodes) < COMPARED:
            self.first = dict(self.now)
        if self.episodes and len(self.episodes[-1][1]) < STUCK * LONGEST:
            del self.episodes[-1][1][-AFTER:]
        behind = list(self.recent)[-AFTER:]
        self.episodes.append((behind[0].step, [one.value for one in behind]))
        self.recent.clear()
        self.recent.extend(behind)

    def _changed(self) -> bool:
        """Whether the last losses stand out of those before, which must be of the same episode."""
        if len(self.recent) < BEFORE + AFTER:
            return False
        values = [one.value for one in self.recent]
        before, after = values[:BEFORE], values[BEFORE:]
        # Settles most losses: what is no higher than the lower middle is no higher than the median.
        if min(after) <= sorted(before)[(BEFORE - 1) // 2]:
            return False
        usual = median(before)
        spread = 1.4826 * median(abs(value - usual) for value in before) + 0.02 * abs(usual)
        return min(after) > max(usual + SPREADS * spread, JUMP * usual)

    def _scores(self) -> tuple[list[float], list[float]] | None:
        """Mean losses behind the first and the last changes, when the last has come as far as the others."""
        if len(self.episodes) <= COMPARED:
            return None
        *past, last = (losses for _, losses in self.episodes)
        early, late = past[:COMPARED], past[COMPARED:][1 - COMPARED :]
        length = min(LONGEST, *map(len, early + late))
        if length < LEAST:
            return None
        before = [fmean(losses[length // 2 : length]) for losses in early]
        if len(last) == STUCK * length:
            return before, [fmean(last[-length:])]
        if len(late) < COMPARED - 1 or len(last) != length:
            return None
        return before, [fmean(losses[length // 2 : length]) for losses in [*late, last]]

    def _signs(self) -> dict[str, float]:
        """What the features say of it: numbers at the second change and now, where they have got worse."""
        signs: dict[str, float] = {}
        for name, worse in (
            ("feature rank", lambda first, now: now < FALLEN * first),
            ("dormant units", lambda first, now: now > first + DORMANT),
        ):
            if name in self.first and worse(self.first[name].value, self.now[name].value):
                signs |= {f"{name} at first": self.first[name].value, name: self.now[name].value}
        if signs and "weight norm" in self.first:
            grown = self.now["weight norm"].value / max(self.first["weight norm"].value, 1e-30)
            signs["weight norm, times"] = grown
        return signs

    def _finding(self, early: float, late: float, signs: dict[str, float]) -> Finding:
        began = self.episodes[-COMPARED][0]
        words = ", ".join(f"{name} {value:.3g}" for name, value in signs.items())
        return Finding(
            self.name,
            began,
            f"after a change of the targets the loss is {late:.3g} on average, after the first it was "
            f"{early:.3g} ({words}).",
            {
                "loss after change": late,
                "at first": early,
                "times": late / early,
                "threshold": SLOWER,
                "changes": float(len(self.episodes)),
                **signs,
            },
            "warning",
            self._worst(),
            ("plasticity", "continual-backprop", "dormant-neurons", "normalize-and-project"),
            (
                replace(
                    normalise(),
                    title="in a new run, normalise what each hidden layer gives its activation",
                    paper="plasticity",
                ),
                renewed(),
            ),
        )

    def _worst(self) -> tuple[str, ...]:
        """Layers by how much of their rank is left, least first."""
        if "feature rank" not in self.first:
            return ()
        first, now = self.first["feature rank"].layers, self.now["feature rank"].layers
        left = {name: now[name] / first[name] for name in now if first.get(name)}
        return tuple(sorted((name for name in left if left[name] < FALLEN), key=lambda name: left[name])[:3])
