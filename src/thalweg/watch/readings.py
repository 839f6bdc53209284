"""What a run says about itself: readings (numbers at a step) and findings (what they mean)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thalweg.watch.rates import ErrorRates, error_rates

__all__ = ["Finding", "Reading", "Remedy"]

SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True)
class Reading:
    """One number measured at one step, and, where it has parts, those of each layer.

    Attributes:
        step: the optimizer step before which it was taken, from 1.
        name: what was measured, such as ``gradient norm``.
        value: the number for the whole model.
        layers: the same by layer or parameter; empty where that has no meaning.
        extra: numbers that belong to it, such as the threshold it is judged by.
    """

    step: int
    name: str
    value: float
    layers: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)

    @property
    def extras_finite(self) -> bool:
        return all(map(math.isfinite, self.extra.values()))


@dataclass(frozen=True)
class Remedy:
    """Something to try, as code that can be pasted; ``paper`` is the key of its source."""

    title: str
    code: str
    paper: str


@dataclass(frozen=True)
class Finding:
    """Something that is happening in a run, with the numbers that show it.

    Attributes:
        name: what it is called in the literature.
        step: where it began.
        message: one sentence, with the numbers.
        evidence: the numbers, thresholds included, by name.
        severity: ``info``, ``warning`` or ``critical``.
        layers: the layers concerned, worst first.
        papers: keys of the papers that describe it, see ``thalweg papers show KEY``.
        remedies: what to try.
        found: step of the reading that told it, which may be later than ``step``; None where nobody noted it.
    """

    name: str
    step: int
    message: str
    evidence: Mapping[str, float]
    severity: str = "warning"
    layers: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    found: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "step": self.step,
            "message": self.message,
            "evidence": plain(self.evidence),
            "severity": self.severity,
            "layers": list(self.layers),
            "papers": list(self.papers),
            "remedies": [vars(remedy) for remedy in self.remedies],
            "found": self.found,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """The finding that :meth:`as_dict` described."""
        remedies = tuple(Remedy(**one) for one in data["remedies"])
        lists = {key: tuple(data[key]) for key in ("layers", "papers")}
        evidence = {key: float(value) for key, value in data["evidence"].items()}
        return cls(**{**data, **lists, "evidence": evidence, "remedies": remedies})

    @property
    def rates(self) -> ErrorRates | None:
        """How often a finding of this name is right, as far as that was measured."""
        return error_rates(self.name)

    def __str__(self) -> str:
        later = f", found at step {self.found}" if self.found not in (None, self.step) else ""
        lines = [f"[{self.severity}] {self.name} at step {self.step}{later}: {self.message}"]
        if self.layers:
            lines.append(f"  layers: {', '.join(self.layers)}")
        if self.rates is not None:
            lines.append(f"  measured: {self.rates}")
        for remedy in self.remedies:
            lines.append(f"  try: {remedy.title} ({remedy.paper})")
            lines += [f"      {line}" for line in remedy.code.splitlines()]
        return "\n".join(lines)


def plain(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers for JSON, which knows no NaN and no infinity: those as words that ``float`` reads."""
    return {key: value if math.isfinite(value) else str(value) for key, value in numbers.items()}


def labelled(name: str, label: str) -> str:
    """What a reading of another optimizer than the first is stored as."""
    return f"{name} of {label}" if label else name
