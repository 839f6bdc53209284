"""A verdict is computed: rules over one number, written before it is measured, that print as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from thalweg._core.checks import check_choice

__all__ = [
    "FORMULAS",
    "VERDICTS",
    "Rule",
    "at_least",
    "between",
    "check_rules",
    "effect_of",
    "judge",
    "otherwise",
]

VERDICTS = ("reproduced", "direction only", "not reproduced", "not at this scale")
# In each, a larger effect is better for the method. Ratios are for what is always positive.
FORMULAS = ("baseline / method", "method / baseline", "baseline - method", "method - baseline")
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@dataclass(frozen=True)
class Rule:
    """Holds where ``low <= effect <= high``; ``str(rule)`` is its text, :meth:`parse` the way back."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, effect: float) -> bool:
        return self.low <= effect <= self.high

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "otherwise"
        if self.high == math.inf:
            return f"effect >= {self.low:g}"
        return f"{self.low:g} <= effect <= {self.high:g}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule that prints as ``text``.

        Raises:
            ValueError: for any other text.
        """
        if text == "otherwise":
            return otherwise
        if found := re.fullmatch(rf"effect >= ({_NUMBER})", text):
            return at_least(float(found[1]))
        if found := re.fullmatch(rf"({_NUMBER}) <= effect <= ({_NUMBER})", text):
            return between(float(found[1]), float(found[2]))
        raise ValueError(
            f"a rule must read 'effect >= 2', '0.9 <= effect <= 1.1' or 'otherwise', got {text!r}"
        )


def at_least(low: float) -> Rule:
    """``effect >= low``"""
    return Rule(low=low)


def between(low: float, high: float) -> Rule:
    """``low <= effect <= high``"""
    if not low <= high:
        raise ValueError(f"low must be at most high = {high}, got {low}")
    return Rule(low, high)


otherwise = Rule()


def check_rules(rules: Mapping[str, Rule]) -> None:
    """Refuse rules that could leave an effect without a verdict, or name one that does not exist."""
    for name, rule in rules.items():
        check_choice("verdict", name, VERDICTS)
        if not isinstance(rule, Rule):
            raise ValueError(f"verdict {name!r} must be a rule such as at_least(2), got {rule!r}")
    if not rules or list(rules.values())[-1] != otherwise or list(rules.values()).count(otherwise) > 1:
        raise ValueError(
            f"verdict must end with its only 'otherwise', got {[str(r) for r in rules.values()]}"
        )


def judge(rules: Mapping[str, Rule], effect: float) -> str:
    """The first verdict whose rule holds; an effect that is no number satisfies ``otherwise`` alone."""
    check_rules(rules)
    return next(name for name, rule in rules.items() if rule == otherwise or rule.holds(effect))


def effect_of(formula: str, baseline: float, method: float) -> float:
    """One seed's effect from the two scores."""
    check_choice("effect", formula, FORMULAS)
    if formula.endswith("- method"):
        return baseline - method
    if formula.endswith("- baseline"):
        return method - baseline
    above, below = (baseline, method) if formula.endswith("/ method") else (method, baseline)
    return above / max(below, 1e-12)
