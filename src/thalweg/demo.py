"""``thalweg demo``: watch a run go wrong, apply the remedy that the finding names, measure what it did.

Modular addition with AdamW and no weight decay (the setting of arXiv 2501.04697, at prime 59): the network
learns the training set by heart, its logits grow until the softmax collapses, the test accuracy stays at
chance. The remedy's code is taken from the finding and run as it stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from thalweg import tasks
from thalweg.report import write_report
from thalweg.watch import Finding, watch

PRIME = 59
WIDTH = 128
LR = 0.01
# More than by default: on a slow or busy machine the hooks alone may take 3% of steps this small.
BUDGET = 0.1
BEFORE_STEPS = 2800
AFTER_STEPS = 1000
EVALUATE = 25
GENERALISED = 0.95

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """How one of the two runs ended."""

    name: str
    optimizer: str
    findings: list[Finding]
    train_accuracy: float
    test_accuracy: float
    collapsed: float
    generalised_at: int | None
    seconds: float
    watching: float

    def row(self) -> dict[str, Any]:
        """One line of the table."""
        return {
            "run": self.name,
            "optimizer": self.optimizer,
            "train accuracy": f"{self.train_accuracy:.3f}",
            "test accuracy": f"{self.test_accuracy:.3f}",
            f"step of {GENERALISED:.0%} test accuracy": str(self.generalised_at or "never"),
            "softmax collapsed": f"{self.collapsed:.1%}",
            "seconds": f"{self.seconds:.0f}",
            "watching / training time": f"{self.watching:.1%}",
        }


def demo(
    folder: Path, *, progress: Progress, on_finding: Callable[[Finding], None]
) -> tuple[list[Outcome], Path]:
    """Run both halves and write ``folder/report.html``; about half a minute on two cores.

    Args:
        progress: called with the run's name, the step and the number of steps.
        on_finding: called with each finding as it appears.

    Raises:
        RuntimeError: if the first run shows no finding with a remedy.
        ValueError: if the store in ``folder`` is not ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "run.sqlite"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small are slower on two
    try:
        before, first = _train("before", BEFORE_STEPS, store, _careless, progress, on_finding)
        remedy = _remedy(before.findings)
        after, second = _train(
            "after", AFTER_STEPS, store, lambda m: _pasted(remedy, m), progress, on_finding
        )
    finally:
        torch.set_num_threads(threads)
    names = " and ".join(f"“{name}”" for name in dict.fromkeys(one.name for one in before.findings))
    lead = (
        f"An MLP learns addition modulo {PRIME} from 40% of all pairs. Watched at a budget of {BUDGET:.0%}, "
        f"the first run shows {names}. The second differs in the optimizer that the finding gave: "
        f"{next(line for line in remedy.splitlines() if line.startswith('opt = '))}"
    )
    outcomes = [before, after]
    path = write_report(
        store,
        folder / "report.html",
        runs=[first, second],
        title="thalweg demo: a run that memorises, and what mends it",
        lead=lead,
        table=[one.row() for one in outcomes],
    )
    return outcomes, path


def _careless(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.0)


def _pasted(code: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Run a remedy's code the way a user would who pastes it below the old optimizer."""
    names: dict[str, Any] = {"model": model, "opt": _careless(model), "torch": torch}
    exec(code, names)
    return names["opt"]


def _remedy(findings: list[Finding]) -> str:
    """The code of the first remedy that is an optimizer, of the finding about the softmax if there is one."""
    ordered = sorted(findings, key=lambda one: one.name != "softmax collapse")
    for finding in ordered:
        for remedy in finding.remedies:
            if "opt = " in remedy.code:
                return remedy.code
    raise RuntimeError("the first run showed no finding with a remedy; please report this with runs/demo")


def _train(
    name: str,
    steps: int,
    store: Path,
    make: Callable[[torch.nn.Module], torch.optim.Optimizer],
    progress: Progress,
    on_finding: Callable[[Finding], None],
) -> tuple[Outcome, int]:
    split = tasks.modular_arithmetic(p=PRIME, train_fraction=0.4, seed=0)
    model = tasks.MLP([2 * PRIME, WIDTH, WIDTH, PRIME], bias=False, seed=0)
    optimizer = make(model)
    inputs, targets = split.train
    start = time.perf_counter()
    with watch(
        model,
        optimizer,
        loss_fn=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        store=store,
        name=name,
        budget=BUDGET,
        on_finding=on_finding,
    ) as run:
        for step in range(1, steps + 1):
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            run.log(loss=loss, batch=split.train)
            optimizer.step()
            if step % EVALUATE == 0 or step == steps:
                run.log(**_scores(model, split))
                progress(name, step, steps)
    seconds = time.perf_counter() - start
    return _outcome(name, run, model, split, seconds), run.id


def _scores(model: torch.nn.Module, split: tasks.Split) -> dict[str, Any]:
    with torch.no_grad():
        train, test = model(split.train[0]), model(split.test[0])
        return {
            "train_accuracy": (train.argmax(1) == split.train[1]).float().mean(),
            "test_accuracy": (test.argmax(1) == split.test[1]).float().mean(),
            "test_loss": F.cross_entropy(test, split.test[1]),
        }


def _outcome(name: str, run: Any, model: torch.nn.Module, split: Any, seconds: float) -> Outcome:
    from thalweg.probe import softmax_collapse
    from thalweg.watch import RunStore

    with RunStore(run.store_path) as store:
        tests = store.readings(run.id, "test accuracy")
    with torch.no_grad():
        collapsed = softmax_collapse(model(split.train[0]), split.train[1]).fraction
    return Outcome(
        name,
        type(run.moment.optimizer).__name__,
        run.findings,
        tasks.accuracy(model, *split.train),
        tasks.accuracy(model, *split.test),
        collapsed,
        next((one.step for one in tests if one.value >= GENERALISED), None),
        seconds,
        run.budget.spent,
    )
