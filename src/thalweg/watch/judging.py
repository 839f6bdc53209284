"""The rules of a run at work: which of them see a reading, and what judging the losses costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from thalweg.watch.percent import Accuracies
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.rule import Rule

__all__ = ["Judges"]

# Of the losses that are judged one in so many is timed: asking for the time costs as much as a rule.
TIMED = 7


class Judges:
    """Shows readings to the rules that read them; a rule that fails is switched off.

    Args:
        rules: by label of the optimizer whose readings they judge; the first optimizer's is empty.
        titles: what findings call an optimizer of that label, where there are several.
        complain: told of a rule that failed, and in words what becomes of it.

    Attributes:
        thin: of the losses, one in so many is judged.
        price: seconds of processor time that judging one takes, as far as that is known.
    """

    def __init__(
        self,
        rules: Mapping[str, Sequence[Rule]],
        titles: Mapping[str, str],
        complain: Callable[[Exception, str], None],
    ):
        self.thin, self.price = 1, 0.0
        self._titles, self._complain = titles, complain
        self._losses = 0
        self._accuracies = Accuracies()
        self._rules: dict[tuple[str, str], list[Rule]] = {}
        for label, judges in rules.items():
            for rule in judges:
                for name in rule.reads:
                    self._rules.setdefault((label, name), []).append(rule)

    def restart(self, label: str, about: Mapping[str, Any]) -> None:
        """From here on the rules of this label judge another optimizer."""
        rules = {id(one): one for (of, _), found in self._rules.items() if of == label for one in found}
        for rule in rules.values():
            rule.restart(about)

    def see(self, label: str, reading: Reading) -> list[Finding]:
        """What the rules say of a reading."""
        findings: list[Finding] = []
        rules = self._rules.get((label, reading.name))
        shown = self._accuracies.share(reading) if rules else None
        if not rules or shown is None:
            return findings
        for rule in list(rules):
            try:
                found = list(rule.see(shown))
            except Exception as error:
                self._complain(error, f"the rule {rule.name!r} failed and is switched off")
                for readers in self._rules.values():
                    readers[:] = [one for one in readers if one is not rule]
                continue
            if found:
                findings += self._signed(label, reading, found)
        return findings

    def see_loss(self, reading: Reading) -> list[Finding]:
        """The same of a loss, if it is one of those that are judged; one that is not finite always is."""
        if self.thin > 1 and reading.step % self.thin and reading.finite:
            return []
        self._losses += 1
        if self._losses % TIMED:
            return self.see("", reading)
        began = time.thread_time()
        found = self.see("", reading)
        self.price += 0.1 * (time.thread_time() - began - self.price)
        return found

    def _signed(self, label: str, reading: Reading, found: list[Finding]) -> Iterator[Finding]:
        title = self._titles.get(label)
        for one in found:
            message = f"{title}: {one.message}" if title else one.message
            yield replace(one, message=message, found=reading.step)
