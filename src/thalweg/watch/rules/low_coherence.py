"""The loss falls although no example's gradient helps another (arXiv 2203.10036)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean, stdev

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

READINGS = 100
ENOUGH = 20
STEPS = 40
COHERENCE = 0.003
SURE = 2.0
EARLY = 0.7
BEGUN = 0.97
FALL = 0.01
FIRST = 10
LOSSES = 2000


class LowCoherence(Rule):
    """Coherence surely below 0.003 while the loss falls from 0.97 of what it was at first to 0.7.

    Coherence falls in every run once its examples are fitted, and is then judged no more. The first few
    hundredths of the loss are what its first weights answered too boldly, and say nothing. In between, true
    labels give each step a direction that many examples share; wrong ones do not, and a loss that falls all
    the same is being learnt by heart. Surely: two standard errors over the last 20 to 100 readings and at
    least 40 steps. The loss falls if its last half is below its first by 0.01 and by two standard errors.

    Coherence is low with right labels, too, where examples have in common much that tells no class, such as
    the mean of random features under a head that is trained alone. But p weights learn no more by heart of n
    examples than p / 2n nats an example, what a maximum-likelihood fit gains from chance (Wilks 1938), and
    the share p / n of the variance of squared errors: a loss that has fallen further is not learnt so. Of a
    loss that is neither nobody knows how much can be learnt by heart, and low coherence alone decides.
    """

    name = "low coherence"
    reads = ("loss", "gradient coherence")

    def __init__(self, about):
        super().__init__(about)
        self.past: deque[Reading] = deque(maxlen=READINGS)
        self.losses: deque[Reading] = deque(maxlen=LOSSES)
        self.recent: deque[float] = deque(maxlen=FIRST)
        self.first: list[float] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said:
            return
        if reading.name == "loss":
            if reading.finite:
                # Below zero a loss has no scale that a share could be of.
                self.said = reading.value < 0
                self.losses.append(reading)
                self.recent.append(reading.value)
                if len(self.first) < FIRST:
                    self.first.append(reading.value)
            return
        if not (reading.finite and reading.extras_finite):
            return
        if not self._early():
            self.past.clear()
            self.losses.clear()
            return
        self.past.append(reading)
        start = self.past[0].step
        while self.losses and self.losses[0].step < start:
            self.losses.popleft()
        if len(self.past) < ENOUGH or reading.step - start < STEPS or len(self.losses) < ENOUGH:
            return
        signals = [one.extra["signal"] for one in self.past]
        whole = fmean(one.extra["signal"] + one.extra["noise"] for one in self.past)
        coherence = fmean(signals) / whole
        # What lies below zero is chance, and no evidence that the truth is far below the limit.
        most = max(coherence, 0.0) + SURE * stdev(signals) / math.sqrt(len(signals)) / whole
        if most > COHERENCE or not self._learning():
            return
        first, now = fmean(self.first), fmean(one.value for one in self.losses)
        nats = reading.extra.get("weights", math.inf) / (2 * reading.extra.get("different", 1))
        if first - now > reading.extra.get("by heart", nats):
            return
        self.said = True
        numbers = {"coherence": coherence, "at most": most, "threshold": COHERENCE}
        numbers |= {"loss": now, "first loss": first}
        yield Finding(
            self.name,
            start,
            f"the gradients of different examples have a coherence of {coherence:.2g} (at most {most:.2g}) "
            f"while the loss falls, now {now:.3g} of {first:.3g}: examples are learnt one by one, which is "
            "how wrong or random labels are learnt.",
            numbers,
            "warning",
            (),
            ("gradient-coherence", "example-forgetting"),
            self._remedies(),
        )

    def _early(self) -> bool:
        """Whether learning has begun, and much is left to learn."""
        if not self.first:
            return False
        first = fmean(self.first)
        return EARLY * first < fmean(self.recent) < BEGUN * first

    def _learning(self) -> bool:
        values = [one.value for one in self.losses]
        half = len(values) // 2
        early, late = values[:half], values[half:]
        error = math.sqrt(stdev(early) ** 2 / len(early) + stdev(late) ** 2 / len(late))
        return fmean(early) - fmean(late) > max(FALL * fmean(self.first), SURE * error)

    def _remedies(self) -> tuple[Remedy, ...]:
        return (
            Remedy(
                "look at labels: the examples that a step for the batch makes worst",
                "from thalweg import probe\n"
                "def each(model, batch):\n"
                "    logits, targets = model(batch[0]), batch[1]\n"
                "    targets = targets.flatten(0, logits.ndim - 2)\n"
                "    losses = torch.nn.functional.cross_entropy(\n"
                "        logits.flatten(0, -2), targets, reduction='none'\n"
                "    )\n"
                "    return losses.reshape(len(logits), -1).mean(1)  # of each example\n"
                "batch = next(iter(loader))\n"
                "suspects = probe.example_alignment(model, batch, each).cosines.argsort()[:20]\n"
                "print(suspects)",
                "gradient-coherence",
            ),
        )
