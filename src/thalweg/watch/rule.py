"""A rule turns readings into findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from thalweg._core.discover import modules
from thalweg.watch.readings import Finding, Reading

__all__ = ["Rule", "all_rules"]

GRACE = 20
# Where only the name of an optimizer is known, these are taken for ones that do not divide by past gradients.
PLAIN = ("SGD", "ASGD", "SGDP", "Rprop", "Lion", "Muon", "LBFGS")


class Rule:
    """Sees every reading whose name is in ``reads``, in order, and says what it means.

    Subclasses keep what they need of the past; ``about`` tells of the run: ``optimizer`` (its class), ``lr``,
    ``adaptive``, and ``since``, the step after which this optimizer began, if not at first.
    A rule makes findings that are called as it is, and may make ``further`` ones.
    """

    name: str
    reads: tuple[str, ...]
    further: tuple[str, ...] = ()

    def __init__(self, about: Mapping[str, Any]):
        self.about = about

    @property
    def adaptive(self) -> bool:
        """Whether the run's optimizer divides by the size of past gradients, as Adam does."""
        return bool(self.about.get("adaptive", self.about.get("optimizer") not in PLAIN))

    @property
    def lr(self) -> float:
        """The run's learning rate."""
        return float(self.about.get("lr", 1e-3))

    def begins(self, step: int) -> bool:
        """Whether an optimizer of Adam's kind is in its first 20 steps: of entries whose first gradient is
        still to come its preconditioner is 1/eps, which says nothing.
        """
        return self.adaptive and step - int(self.about.get("since", 0)) <= GRACE

    def restart(self, about: Mapping[str, Any]) -> None:
        """Another optimizer steps from now on."""
        self.about = about

    def see(self, reading: Reading) -> Iterable[Finding]:
        raise TypeError(f"{type(self).__name__} must define see(reading)")


def all_rules(about: Mapping[str, Any]) -> list[Rule]:
    """A fresh instance of every rule in ``watch/rules``."""
    found = [value for module in modules("thalweg.watch.rules") for value in vars(module).values()]
    return [
        one(about) for one in found if isinstance(one, type) and issubclass(one, Rule) and one is not Rule
    ]
