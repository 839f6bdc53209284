"""Opposing signals (arXiv 2311.04163): do two groups of digits swing against each other, what damps them?"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg import optim
from thalweg.probe import opposing_gradients, opposing_signals
from thalweg.studies.study import Arm, Config, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import MLP, handwritten_digits

STEPS, SHORT, GOAL, GROUP = 600, 400, 0.08, 10
EDGE, SMALL = grid(lr=(0.2,)), grid(lr=(0.02,))
FOUND, DRAWN = Arm("groups found", EDGE), Arm("groups drawn at random", EDGE)
DESCENT = Arm("gradient descent", grid(lr=(0.1, 0.15, 0.2, 0.3, 0.4, 0.6)))
NAMES = ("correlation", "cosine", "reversals", "share of change")
SWING = ("steps", "rising minus falling group's change of loss")


def rules(high: float, low: float) -> dict[str, Rule]:
    return {"reproduced": at_least(high), "direction only": at_least(low), "not reproduced": otherwise}


def of(name: str, metric: str, high: float, low: float, effect: str, worst: float, *arms: Arm) -> Setting:
    both = {"baseline": arms[0], "method": arms[1], "axes": SWING, "worst": worst}
    return Setting(setting=name, metric=metric, verdict=rules(high, low), effect=effect, **both)  # type: ignore[arg-type]


def of_remedy(name: str, method: str, configs: tuple[Config, ...]) -> Setting:
    return Setting(
        setting=name,
        metric="loss that single examples regain, added up over all steps until the mean training loss falls "
        "to 0.08, over what the mean loses on the way (a run that is not there after 400 steps counts as "
        f"100): gradient descent / {method}, each at the configuration that is best for this number",
        verdict=rules(2, 1.1),
        worst=100.0,
        axes=("steps", "mean training loss"),
        log_y=True,
        baseline=DESCENT,
        method=Arm(method, configs),
    )


STUDY = Study(
    paper="opposing-signals",
    claim="In a common dataset there are two small groups of examples whose losses move against each other "
    "in single steps; Adam, clipping and batch normalisation damp the swings.",
    setting="correlation",
    metric="correlation of the mean loss changes of two groups of 10 over 599 of 600 steps; the groups are "
    "chosen in the step left out, where the mean loss rose most (a diverged run counts as 1): two groups "
    "drawn at random minus those whose losses rose and fell most in that step",
    verdict=rules(1, 0.3),
    effect="baseline - method",
    worst=1.0,
    axes=SWING,
    baseline=DRAWN,
    method=FOUND,
    beside=(
        of(
            "gradients",
            "cosine of the groups' mean gradients after the last step (a diverged run counts as 1): groups "
            "drawn at random minus groups found",
            *(0.5, 0.1, "baseline - method", 1.0, DRAWN, FOUND),
        ),
        of(
            "large and small steps",
            "share of steps in which the difference of the two groups' changes has the other sign than one "
            "step before (a diverged run counts as 0): learning rate 0.2 minus 0.02",
            *(0.5, 0.1, "method - baseline", 0.0, Arm("far below the edge", SMALL), Arm("at the edge", EDGE)),
        ),
        of(
            "outsized",
            "share of all change of loss, over 599 of 600 steps, that falls to 20 members (a diverged run "
            "counts as 0.001): groups found / the examples of highest loss before the step left out",
            *(1.5, 1.1, "method / baseline", 0.001, Arm("highest loss", EDGE), FOUND),
        ),
        of_remedy("Adam", "Adam", grid(lr=(3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 1e-2))),
        of_remedy("clipping", "clipped gradient descent", grid(lr=(0.2, 0.3), max_norm=(0.3, 0.5, 1.0))),
        of_remedy("batch normalisation", "batch-normalised", grid(lr=(0.03, 0.04, 0.05, 0.07, 0.1, 0.2))),
    ),
    minutes=2,
    notes="1000 digits, tanh MLP 64-64-64-10, half the squared error to one-hot targets, whole batch. Sizes, "
    "learning rates and grids are from pilots on other seeds, in which learning rate 0.2 was at the edge of "
    "stability for most of the run and 0.02 never. The 400 steps keep gradient descent from winning by small "
    "steps. Clipping regained more the more it clipped: beyond its grid lies gradient descent itself.",
)


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - F.one_hot(batch[1], 10)).square().sum(1) / 2


@cache  # settings share runs
def descended(arm: str, seed: int, steps: int, lr: float, max_norm: float) -> tuple[Any, Any, Any, Tensor]:
    """Spec, model, data, and the losses of all examples before every step; a diverged run ends early."""
    data = handwritten_digits(1000, seed=seed).train
    norm = "batch" if arm == "batch-normalised" else None
    model = MLP((64, 64, 64, 10), activation="tanh", norm=norm, seed=seed)
    chain = [optim.adam() if arm == "Adam" else optim.momentum(0.0)]
    if max_norm:
        chain.insert(0, optim.clip_norm(max_norm))
    optimizer = optim.Descent(model.parameters(), *chain, lr=lr)
    spec, history = dict(optim.spec(optimizer)), []
    for _ in range(steps):
        optimizer.zero_grad()
        losses = losses_of(model, data)
        if not losses.mean() < 1e3:
            break
        history.append(losses.detach())
        losses.mean().backward()
        optimizer.step()
    return spec, model, data, torch.stack(history).double()


def regained(history: Tensor) -> float:
    mean = history.mean(1)
    below = (mean <= GOAL).nonzero()
    if not len(below):
        return math.nan
    way = history[: int(below[0]) + 1].diff(dim=0)
    return (way.clamp_min(0).sum() / way.shape[1] / (mean[0] - GOAL)).item()


def run(setting: str, arm: str, seed: int, lr: float, max_norm: float = 0.0) -> Trial:
    remedy = setting in ("Adam", "clipping", "batch normalisation")
    kind = arm if remedy else "gradient descent"
    spec, model, data, history = descended(kind, seed, SHORT if remedy else STEPS, lr, max_norm)
    if remedy:
        mean = history.mean(1).tolist()
        return Trial(regained(history), spec, (range(len(mean)), mean), {"last loss": mean[-1]})
    if len(history) < STEPS:
        return Trial(math.nan, spec, ([0], [math.nan]), dict.fromkeys(NAMES, math.nan))
    found = opposing_signals(history, group=GROUP)
    first, second = list(found.rising), list(found.falling)
    if arm == DRAWN.name:
        some = torch.randperm(1000, generator=torch.Generator().manual_seed(seed)).tolist()
        first, second = some[:GROUP], some[GROUP : 2 * GROUP]
    members = history[found.step].topk(2 * GROUP).indices if arm == "highest loss" else [*first, *second]
    change = history.diff(dim=0)
    others = torch.arange(len(change)) != found.step
    pair = torch.stack([change[:, one].mean(1) for one in (first, second)])
    swing = pair[0] - pair[1]
    values = (
        torch.corrcoef(pair[:, others])[0, 1].item(),
        opposing_gradients(model, data, losses_of, first, second).cosine,
        (swing[1:] * swing[:-1] < 0).double().mean().item(),
        (change[others][:, members].abs().sum() / change[others].abs().sum()).item(),
    )
    scored = {"correlation": 0, "gradients": 1, "large and small steps": 2, "outsized": 3}[setting]
    numbers = dict(zip(NAMES, values, strict=True))
    return Trial(values[scored], spec, (range(1, len(change) + 1), swing.tolist()), numbers)
