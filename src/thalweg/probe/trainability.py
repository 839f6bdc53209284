"""Plasticity (arXiv 2303.01486): how well the weights as they are can still be trained on new targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_positive
from thalweg.probe._batches import take
from thalweg.probe._copies import copied, own_randomness
from thalweg.probe._fresh_targets import Draw, FreshTargets, Loss, fresh_targets, run
from thalweg.probe._quiet import quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["Plasticity", "plasticity"]

Optimizer = torch.optim.Optimizer
Factory = Callable[[Iterable[Tensor], float], Optimizer]
RATES = (3e-4, 1e-3, 3e-3)
TASKS, STEPS = 3, 100


@dataclass(frozen=True)
class Plasticity:
    """How well copies of the model were trained on fresh targets; losses in nats, or of ``loss_fn``.

    Attributes:
        score: ``baseline`` minus the mean loss over the tasks after the budget of steps, at the learning rate
            that is best for it; at most ``baseline``, minus infinity if every learning rate diverged.
        share: ``score / baseline``: 1 if all targets were fitted, 0 if no better than a constant answer.
        relative: ``score`` over that of the ``fresh`` weights, or None without; NaN if those learned nothing.
        fresh: score of the ``fresh`` weights at the learning rate that is best for them, or None.
        baseline: loss of the best constant answer.
        rate: learning rate behind ``score``.
        losses: learning rate to the loss of each task at the end; infinite where training diverged.
        untrained: mean loss over the tasks before training.
        inherited: whether training went on from the live optimizer's state.
    """

    score: float
    share: float
    relative: float | None
    fresh: float | None
    baseline: float
    rate: float
    losses: dict[float, tuple[float, ...]]
    untrained: float
    inherited: bool


@dataclass(frozen=True)
class _Budget:
    """What every copy gets."""

    batch: Any
    tasks: FreshTargets
    steps: int
    batch_size: int | None
    rates: tuple[float, ...]
    optimizer: Factory | Optimizer
    seed: int


def _indices(examples: int, batch_size: int | None, seed: int) -> Callable[[], Tensor | None]:
    """The examples of each step: reshuffled passes, or None for all at once."""
    source = torch.Generator().manual_seed(seed)
    queue: list[Tensor] = []

    def draw() -> Tensor | None:
        if batch_size is None:
            return None
        if not queue:
            queue.extend(torch.randperm(examples, generator=source).split(batch_size))
            if len(queue) > 1 and len(queue[-1]) < batch_size:
                queue.pop()
        return queue.pop(0)

    return draw


def _paced(optimizer: Optimizer, rate: float) -> None:
    """Set the first group's learning rate, and the others' in proportion."""
    first = float(optimizer.param_groups[0]["lr"])
    for group in optimizer.param_groups:
        group["lr"] = rate * float(group["lr"]) / first if first else rate


def _twin(
    model: nn.Module, weights: Mapping[str, Tensor] | None, budget: _Budget, rate: float
) -> tuple[nn.Module, Optimizer]:
    """A copy to train, with its optimizer: at the live weights, or at ``weights`` with no state."""
    live = budget.optimizer if isinstance(budget.optimizer, Optimizer) else None
    twin, optimizer = copied(model, live)
    if weights is not None:
        try:
            twin.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ValueError(f"fresh must fit the model, got weights that do not: {error}") from error
    if optimizer is None:
        params = [p for p in twin.parameters() if p.requires_grad]
        if not params:
            raise ValueError("model must have a parameter that requires a gradient, got none")
        return twin, budget.optimizer(params, rate)  # type: ignore[operator]
    if weights is not None:
        optimizer.state.clear()
    _paced(optimizer, rate)
    return twin, optimizer


def _trained(twin: nn.Module, optimizer: Optimizer, budget: _Budget, targets: Tensor, seed: int) -> float:
    """Loss over the whole batch after training on it."""
    twin.train()
    draw = _indices(len(targets), budget.batch_size, seed)
    for _ in range(budget.steps):
        index = draw()
        inputs = budget.batch if index is None else take(budget.batch, index, len(targets))
        wanted = targets if index is None else targets[index.to(targets.device)]

        def closure(inputs: Any = inputs, wanted: Tensor = wanted) -> Tensor:
            twin.zero_grad()
            loss = budget.tasks.loss_fn(run(twin, inputs), wanted)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    return _loss(twin, budget, targets)


def _loss(model: nn.Module, budget: _Budget, targets: Tensor) -> float:
    with quiet(model):
        found = float(budget.tasks.loss_fn(run(model, budget.batch), targets))
    return found if math.isfinite(found) else math.inf


def _measured(
    model: nn.Module, weights: Mapping[str, Tensor] | None, budget: _Budget
) -> tuple[float, float, dict[float, tuple[float, ...]]]:
    """Least mean loss over the tasks, the learning rate that has it, and all losses."""
    losses = {}
    for rate in budget.rates:
        ends = []
        for number, targets in enumerate(budget.tasks.targets):
            # Each run has the same random numbers, however many there were before it.
            with own_randomness(model, budget.seed + number):
                twin, twins = _twin(model, weights, budget, rate)
                ends.append(_trained(twin, twins, budget, targets, budget.seed + number))
        losses[rate] = tuple(ends)
    best = min(losses, key=lambda rate: fmean(losses[rate]))
    return fmean(losses[best]), best, losses


@torch.inference_mode(False)
@torch.enable_grad()
@costs(
    3 + TASKS * (1 + len(RATES) * (STEPS + 1)),
    TASKS * len(RATES) * STEPS,
    memory="one copy of the model with its optimizer's state, and the graph of one backward pass",
)
def plasticity(
    model: nn.Module,
    batch: Any,
    *,
    targets: str | Draw = "labels",
    labels: Tensor | None = None,
    tasks: int = TASKS,
    steps: int = STEPS,
    rates: Sequence[float] | None = None,
    batch_size: int | None = None,
    optimizer: Factory | Optimizer | None = None,
    fresh: nn.Module | Mapping[str, Tensor] | None = None,
    loss_fn: Loss | None = None,
    baseline: float | None = None,
    seed: int = 0,
) -> Plasticity:
    r"""Train copies on fresh targets within a fixed budget, and compare with the best constant answer.

    .. math:: P(\theta) = b - \mathbb{E}_{\ell}\,[\,\ell(O(\theta, \ell, N))\,]

    for an optimizer :math:`O` with :math:`N` steps (arXiv 2303.01486). Give ``fresh``, the weights at
    initialisation, and read ``relative``: below 0.8 plasticity is being lost, below 0.5 much of it is. Choose
    ``steps`` so that fresh weights do not fit everything, or nothing can be told apart. A run of its own is
    made for each task and learning rate, at 256 to 512 examples: something to do a few times in a training.
    What is measured is fitting, not generalisation.

    Args:
        model: copied, never touched: weights, buffers, ``.grad``, flags, hooks and the global random state
            stay. Copies train in training mode and are judged in evaluation mode, without the hooks of the
            live model. Behind DDP or ``torch.compile``, the module inside; each process by itself, so that
            all agree if they are given the same batch.
        batch: inputs: a tensor, a tuple of positional or a mapping of keyword arguments. The model returns
            (examples, ..., outputs), or has that as ``.logits`` or first in a tuple.
        targets: ``"labels"``, uniform among the outputs; ``"shuffled"``, a permutation of ``labels``;
            ``"network"``, the standardised outputs of the model with fresh weights, as a regression; or a
            function of (outputs, generator) with a ``loss_fn`` and a ``baseline``.
        labels: int64, of the outputs' shape without the last dimension; -100 stays where it is and does not
            count.
        tasks, steps: how many targets are drawn, and updates made on each.
        rates: learning rates, of which the best counts, for these and for the fresh weights on their own. By
            default 0.0003, 0.001 and 0.003, or a live optimizer's own.
        batch_size: examples a step; by default all.
        optimizer: from (parameters, learning rate) to an optimizer, by default Adam: its state starts empty.
            Or the live optimizer: its state is inherited, as when the targets change during training (the
            fresh weights still start with none). The two answer different questions.
        fresh: a model or state dict to compare with.
        loss_fn: from (outputs, targets) to a scalar; by default cross-entropy, for ``"network"`` the mean
            square.
        baseline: loss of the best constant answer; by default log K, the entropy of ``labels``, or 1.
        seed: of targets, order and dropout.

    Raises:
        ValueError: a bad argument; a model that cannot be copied, has nothing to train, or whose output has
            another form.
    """
    check_count("tasks", tasks)
    check_count("steps", steps)
    check_count("seed", seed, low=0)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    inherited = isinstance(optimizer, Optimizer)
    if rates is None:
        rates = (float(optimizer.param_groups[0]["lr"]),) if isinstance(optimizer, Optimizer) else RATES
    chosen = tuple(check_positive("rates", rate) for rate in rates)
    if not chosen:
        raise ValueError("rates must hold a learning rate, got none")
    source, _ = copied(model, None)
    with own_randomness(source, seed):
        drawn = fresh_targets(source, batch, targets, labels, tasks, loss_fn, baseline, seed)
    budget = _Budget(batch, drawn, steps, batch_size, chosen, optimizer or torch.optim.Adam, seed)
    untrained = fmean(_loss(source, budget, wanted) for wanted in drawn.targets)
    loss, rate, losses = _measured(model, None, budget)
    score = drawn.baseline - loss
    at_first = relative = None
    if fresh is not None:
        weights = bare(fresh).state_dict() if isinstance(fresh, nn.Module) else fresh
        at_first = drawn.baseline - _measured(model, weights, budget)[0]
        relative = score / at_first if at_first > 0 else math.nan
    share = score / drawn.baseline if drawn.baseline else math.nan
    return Plasticity(score, share, relative, at_first, drawn.baseline, rate, losses, untrained, inherited)
