"""What is said of a run in words: its state, what watching cost, its settings, the units of its readings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.watch import Finding, RunInfo

QUIET = 60.0  # seconds after which a run that says nothing is taken for killed
MOST = 6  # curves in one view
RUNNING, SILENT = "running", "not heard of any more"
STATES = (RUNNING, "finished", "ended by an error", SILENT)

# What people look at first comes first; those that a page shows unasked, as far as a run has them.
ORDER = ("loss", "test loss", "train accuracy", "test accuracy", "gradient norm", "sharpness", "weight norm")
UNASKED = ("loss", "test accuracy", "gradient norm", "sharpness")
UNITS = {
    "attention logit": "largest logit",
    "backward signal": "last over first layer",
    "dormant units": "share of hidden units",
    "effective rate": "relative change a step",
    "feature alignment": "cosine with the start",
    "feature rank": "effective dimensions",
    "gradient coherence": "share of the squared norm",
    "gradient noise scale": "examples",
    "gradient norm": "loss per unit of weight",
    "initial statistics": "share of the start",
    "learning rate": "learning rate",
    "log Z": "nats",
    "loss": "loss",
    "neural collapse": "within over between",
    "opposing signals": "correlation",
    "sharpness": "top eigenvalue",
    "softmax collapse": "share of examples",
    "test accuracy": "share correct",
    "test loss": "loss",
    "train accuracy": "share correct",
    "weight norm": "Euclidean norm",
}
# What the store keeps beside settings.
NOT_SETTINGS = {"watching", "left_out", "sinks", "resumed", "unreadable"}


def state_of(run: RunInfo, now: float | None = None) -> str:
    """``running``, its outcome, or that it fell silent."""
    if run.outcome is not None:
        return run.outcome
    return RUNNING if (time.time() if now is None else now) - run.seen < QUIET else SILENT


def kind_of(state: str) -> str:
    """One of ``STATES``: whatever ended a run is one of them."""
    return state if state in STATES else "ended by an error"


def epoch_of(run: RunInfo) -> str:
    """Changes when a run is another one or was resumed: then what a reader knows of it is void."""
    resumed = run.about.get("resumed")
    return f"{int(run.started * 1000):x}-{len(resumed) if isinstance(resumed, list) else 0}"


def overhead(run: RunInfo) -> str:
    """What watching took of the training time, and what it was allowed."""
    spent, budget = run.about.get("watching"), run.about.get("budget")
    if not isinstance(spent, int | float):
        return "not known yet" if run.outcome is None else "not stored"
    words = f"{spent:.1%} of the training time"
    return f"{words}, of {budget:.0%} allowed" if isinstance(budget, int | float) else words


def left_out(run: RunInfo) -> dict[str, str]:
    """What the budget did not reach, and why."""
    found = run.about.get("left_out")
    return {str(key): str(why) for key, why in found.items()} if isinstance(found, dict) else {}


def seldom(run: RunInfo) -> str:
    """The same in a clause, to stand beside what was found; empty where everything was seen."""
    words = left_out(run)
    loss = words.pop("loss", "").partition(" rather")[0]
    clauses = [f"the loss was {loss}"] if loss.startswith("judged") else []
    if words:
        clauses.append(f"{len(words)} reading{'s' if len(words) > 1 else ''} came seldom or never")
    return " and ".join(clauses)


def settings(run: RunInfo) -> dict[str, str]:
    """A run's settings in words."""
    return {str(key): worded(one) for key, one in run.about.items() if key not in NOT_SETTINGS}


def differing(runs: Sequence[RunInfo]) -> dict[str, list[str]]:
    """Settings that are not the same in all of these runs, with each one's."""
    found = [settings(one) for one in runs]
    names = dict.fromkeys(name for one in found for name in one)
    rows = {name: [one.get(name, "") for one in found] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def worded(value: Any) -> str:
    """A setting or a number as people write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {worded(one)}" for key, one in value.items())
    return "none" if value is None else str(value)


def unit_of(name: str) -> str:
    """The unit of a reading; of several optimizers each has its own ``NAME of OPTIMIZER``."""
    return UNITS.get(name) or UNITS.get(name.split(" of ")[0], "as logged")


def in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def chosen(names: Sequence[str], show: Iterable[str]) -> list[str]:
    """At most six of ``names``: those that ``?show=`` asks for, each alone or with commas between."""
    asked: list[str] = []
    for one in show:
        asked += [one] if one in names else one.split(",")
    known = [one for one in dict.fromkeys(asked) if one in names]
    return (known or [one for one in UNASKED if one in names] or list(names[:1]))[:MOST]


def plain_finding(one: Finding) -> dict[str, Any]:
    """A finding as JSON, which knows no NaN."""
    return json.loads(json.dumps(one.as_dict()), parse_constant=lambda _: None)
