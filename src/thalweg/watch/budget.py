"""Keeping the promise about time: every sensor saves up its share of the budget and runs when it can pay.

A sensor's price is the mean of what it has cost so far; before it has run, an estimate from its declared
passes and the measured step. What a sensor cannot use, because it has run often enough, others may.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Budget"]

# An unmeasured sensor waits until it can pay this multiple of its estimate: estimates from passes are rough.
CAUTION = 1.5
# A run that takes more than this multiple of the usual price is charged to all sensors beyond it.
HICCUP = 3.0
# Between looks at who can pay, at most so many steps pass, or what they do in so many seconds.
ASLEEP, NAP = 32, 0.2
# In so many first steps an early sensor runs on credit, as far as so many steps will earn it.
EARLY = 32
CREDIT = 1000


@dataclass
class Account:
    """What one sensor may spend, has spent and costs; seconds."""

    share: float
    every: int
    passes: float
    part: float = 0.0
    saved: float = 0.0
    price: float | None = None
    spent: float = 0.0
    runs: int = 0
    last: int | None = None
    idle: bool = False
    early: bool = False


@dataclass
class Budget:
    """Decides which sensors run before a step, so that together they take ``fraction`` of the step time.

    Attributes:
        fraction: seconds of watching allowed per second of training, at least 0.
        trained: seconds of training so far, watching excluded.
        hooks: seconds spent in the hooks and the recorder themselves; they are paid for first.
        closed: seconds spent by sensors that have been closed since.
        step_time, net: recent means: seconds of training a step, and what of them sensors may spend.
    """

    fraction: float
    accounts: dict[str, Account] = field(default_factory=dict)
    trained: float = 0.0
    hooks: float = 0.0
    closed: float = 0.0
    owed: float = 0.0
    lent: float = 0.0
    spare: float = 0.0
    step_time: float = 0.0
    net: float = 0.0
    steps: int = 0

    def add(self, name: str, *, share: float, every: int, passes: float, early: bool = False) -> None:
        """Open an account: share of the budget, least steps between runs, cost in forward passes.

        Args:
            early: it runs in the first steps too, when nothing has been saved yet; all pay that back.
        """
        self.accounts[name] = Account(share, every, passes, early=early)
        self._divide()

    def earn(self, seconds: float, steps: int = 1) -> None:
        """``steps`` of training took ``seconds``: pay out its share of the budget, less what is owed."""
        self.trained += seconds
        self.steps += steps
        # A median would resist hiccups better; a mean of the recent past costs nothing and is enough here.
        self.step_time += (seconds / steps - self.step_time) * max(steps / self.steps, 0.05)
        income, self.owed = self.fraction * seconds - self.owed, 0.0
        self.net += (income / steps - self.net) * max(steps / self.steps, 0.05)
        useful = 0.0
        for account in self.accounts.values():
            if not account.part:
                continue
            account.saved += income * account.part
            most = 2 * self._price(account)
            useful += most / 2
            if account.saved > most:
                self.spare += account.saved - most
                account.saved = most
        # Minutes of evaluation or of waiting for data are no reason to read at every step for minutes.
        self.spare = min(self.spare, useful)

    def overhead(self, seconds: float) -> None:
        """The hooks themselves took ``seconds``: everybody pays, out of the next earnings."""
        self.hooks += seconds
        self.owed += seconds

    def idle(self, names: set[str]) -> None:
        """These sensors lack what they need, or have nothing to say: the others share the budget."""
        for name, account in self.accounts.items():
            account.idle = name in names
            if account.idle:
                self.spare += max(account.saved, 0.0)
                account.saved = min(account.saved, 0.0)
        self._divide()

    def expect(self, name: str, passes: float) -> None:
        """A better estimate of what ``name`` costs before it has been measured, in forward passes."""
        self.accounts[name].passes = passes

    def due(self, step: int) -> list[str]:
        """The sensors that may run before this step, those that have waited longest first."""
        if not self.steps:
            return []
        spare = max(self.spare, 0.0)
        wanting = [
            (account.last or 0, name)
            for name, account in self.accounts.items()
            if not account.idle
            and (account.last is None or step - account.last >= account.every)
            and (account.early or account.saved + spare > 0)
        ]
        able = []
        for _, name in sorted(wanting):
            account = self.accounts[name]
            need = self._need(account)
            if account.saved + max(self.spare, 0.0) >= need:
                borrowed = max(0.0, need - account.saved)
                self.spare -= borrowed
            elif account.early and self._lends(need):
                borrowed = need
                self.owed += borrowed
                self.lent += borrowed
            else:
                continue
            account.saved += borrowed
            able.append(name)
        return able

    def wake(self, step: int) -> int:
        """The next step, behind ``step``, before which any sensor could be due."""
        asleep = max(ASLEEP, int(NAP / self.step_time)) if self.step_time else ASLEEP
        spare, earliest = max(self.spare, 0.0), step + asleep
        for account in self.accounts.values():
            due = step if account.last is None else account.last + account.every
            if account.idle or due >= earliest:
                continue
            need = self._need(account)
            lacking = need - account.saved - spare
            if lacking > 0 and not (account.early and self._lends(need)):
                wait = lacking / (self.net * account.part) if self.net > 0 else asleep
                due = max(due, step + int(min(wait, asleep)))
            earliest = min(earliest, due)
            if earliest <= step + 1:
                return step + 1
        return earliest

    def every(self, price: float, part: float) -> int:
        """Once in how many steps something fits into a part of the budget; 1 where there is none."""
        income = part * self.fraction * self.step_time
        return min(max(1, math.ceil(price / income)), ASLEEP) if income else 1

    def pay(self, name: str, step: int, seconds: float) -> None:
        """``name`` ran before ``step`` and took ``seconds``."""
        account = self.accounts[name]
        expected = self._price(account) * CAUTION
        account.spent += seconds
        account.runs += 1
        account.last = step
        if account.runs > 2:
            # A hiccup of the machine is nobody's fault; alone, a sensor would pay for thousands of steps.
            usual = min(seconds, HICCUP * self._price(account))
            self.owed += seconds - usual
            seconds = usual
        account.saved -= seconds
        if account.runs == 1:
            # The first run warms caches up: what it took beyond the estimate is a debt, not yet the price.
            account.price = min(seconds, expected)
        else:
            account.price = seconds if account.runs == 2 else 0.7 * (account.price or 0.0) + 0.3 * seconds

    def delay(self, name: str, steps: int) -> None:
        """``name``, which has run, waits so many steps more than it wants to."""
        account = self.accounts[name]
        account.last = (account.last or 0) + steps

    def close(self, name: str) -> None:
        """Stop paying for ``name``; what it has spent stays spent, what it has saved others may use."""
        account = self.accounts.pop(name, None)
        if account is not None:
            self.closed += account.spent
            self.spare += account.saved
            self._divide()

    def _lends(self, seconds: float) -> bool:
        """Whether the run is in its first steps, and later ones will earn this too."""
        return self.steps < EARLY and self.lent + seconds <= CREDIT * self.fraction * self.step_time

    def _need(self, account: Account) -> float:
        return self._price(account) * (CAUTION if account.price is None else 1.0)

    def _divide(self) -> None:
        total = sum(account.share for account in self.accounts.values() if not account.idle)
        for account in self.accounts.values():
            account.part = 0.0 if account.idle else account.share / total

    def _price(self, account: Account) -> float:
        # A training step is about three forward passes: one forward, and one backward that costs two.
        return self.step_time * account.passes / 3 if account.price is None else account.price

    @property
    def spent(self) -> float:
        """Seconds of watching per second of training so far."""
        seconds = self.hooks + self.closed + sum(account.spent for account in self.accounts.values())
        return seconds / self.trained if self.trained else 0.0

    def left_out(self) -> dict[str, str]:
        """In words, what the budget did not reach."""
        words = {}
        for name, account in self.accounts.items():
            if account.idle:
                continue
            if account.runs == 0 and self.steps:
                need, came = self._price(account) * CAUTION, max(account.saved, 0.0)
                words[name] = (
                    f"never ran: needs about {need * 1e3:.3g} ms and its share of the budget came to "
                )
                # With what others leave, a reading may be paid when the run is already over.
                words[name] += f"{came * 1e3:.3g} ms" if came < need else "that only at the end"
                words[name] += f" in {self.steps} steps"
            elif account.runs and self.steps / account.runs > 1.5 * account.every:
                words[name] = (
                    f"ran every {self.steps / account.runs:.0f} steps rather than every {account.every}"
                )
        return words
