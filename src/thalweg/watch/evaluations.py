"""How a model stands when somebody evaluates it between two steps of a run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from thalweg.watch.hooks import Listener, sample
from thalweg.watch.moment import Moment
from thalweg.watch.watched import Watched

__all__ = ["Evaluation", "Evaluations", "minds_the_mode"]

# Notes that no sensor has taken are kept up to this many.
KEPT = 32


@dataclass(frozen=True)
class Evaluation:
    """One or more passes without gradients between two steps.

    Attributes:
        after: optimizer steps before it.
        training: modules that drop units or take the batch's statistics, and were in training mode.
        stored: batch normalisations that used their stored statistics.
        averaged: whether the weights were an average; None where the run keeps none.
        keeper: ``"optimizer"`` or ``"copy"``, by what keeps the average; else empty.
    """

    after: int
    training: tuple[str, ...]
    stored: tuple[str, ...]
    averaged: bool | None
    keeper: str


class Evaluations:
    """Notes into ``moment.evaluations``, once between two steps; ``spent(start)`` is told of the time."""

    def __init__(
        self,
        moment: Moment,
        optimizers: Sequence[Watched],
        listener: Listener,
        spent: Callable[[float], None],
    ):
        self.moment, self.optimizers, self.listener, self.spent = moment, optimizers, listener, spent
        listener.evaluated = self.note
        self._paused = False
        self._last = -1
        self._passes = 0
        self._past: deque[Tensor] = deque(maxlen=KEPT)
        self._modules: list[tuple[str, nn.Module]] | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this the model is run by ourselves."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def note(self) -> None:
        """The model has just run without gradients."""
        moment = self.moment
        if self._paused or moment.step == self._last or len(moment.evaluations) >= KEPT:
            return
        start = time.perf_counter()
        self._last = moment.step
        self._note(moment)
        self.spent(start)

    def _note(self, moment: Moment) -> None:
        assert moment.model is not None
        if self._modules is None:
            self._modules = [pair for pair in moment.model.named_modules() if minds_the_mode(pair[1])]
        norms = {name for name, one in self._modules if isinstance(one, _BatchNorm)}
        on = tuple(name for name, one in self._modules if one.training and not _measuring(one))
        off = tuple(name for name, one in self._modules if not one.training and name in norms)
        averaged, keeper = self._average()
        moment.evaluations.append(Evaluation(moment.step, on, off, averaged, keeper))

    def _average(self) -> tuple[bool | None, str]:
        for one in self.optimizers:
            held = holds_average(one.optimizer)
            if held is not None:
                return held, "optimizer"
        first = next(self.moment.model.parameters(), None) if self.moment.model is not None else None
        if not self.listener.copies or first is None:
            return None, ""
        self._past.append(sample(first))
        copies = [copy for copy in self.listener.copies if copy.averages(self._past)]
        if not copies:
            return None, ""
        # The copies that ran since the last note were evaluated beside the model itself.
        passes = sum(copy.passes for copy in copies)
        ran, self._passes = passes > self._passes, passes
        return ran, "copy"


def holds_average(optimizer: Optimizer | None) -> bool | None:
    """Whether the parameters are an average of the iterates; None of an optimizer that keeps none.

    Known are ``thalweg.optim.Average`` and the schedule-free optimizers, whose mode is in their groups.
    """
    while optimizer is not None:
        averages, training = getattr(optimizer, "averages", None), getattr(optimizer, "training", None)
        if isinstance(averages, dict) and isinstance(training, bool):
            return None if not averages else not training
        mode = optimizer.param_groups[0].get("train_mode")
        if isinstance(mode, bool):
            return not mode
        optimizer = getattr(optimizer, "inner", None)
    return None


def minds_the_mode(module: nn.Module) -> bool:
    """Whether a module gives something else in training than in evaluation: it drops units, or normalises."""
    if isinstance(module, _BatchNorm):
        return module.track_running_stats and module.running_mean is not None
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0


def _measuring(module: nn.Module) -> bool:
    """Batch normalisation that takes a plain mean, as ``torch.optim.swa_utils.update_bn`` has it do."""
    return isinstance(module, _BatchNorm) and module.momentum is None
