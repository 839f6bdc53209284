"""What somebody's own script passes through torch's cross entropy: logits, targets, the loss of a step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.watch.hooks import transformed

# Behind input and target, with what torch.nn.CrossEntropyLoss passes on when nothing was asked of it.
USUAL = {
    "weight": None,
    "size_average": None,
    "ignore_index": -100,
    "reduce": None,
    "reduction": "mean",
    "label_smoothing": 0.0,
}


class CrossEntropies:
    """Stands in for ``torch.nn.functional.cross_entropy`` and gives what that gives.

    Attributes:
        original: torch's own function.
        logits, targets: of the latest call that was differentiated, detached.
        plain: whether that call asked for nothing but the mean.
        fresh: whether there has been one since the last step.
        metric: whether none of the latest were differentiated: something else is the loss then.
    """

    def __init__(self) -> None:
        self.original = F.cross_entropy
        self.logits: Tensor | None = None
        self.targets: Tensor | None = None
        self.plain = self.metric = self._compiled = False
        self._last: tuple[Tensor, Tensor, int, bool] | None = None
        self.fresh = False
        self._total: Tensor | None = None
        self._calls = 0

    def __call__(self, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.original(input, target, *args, **kwargs)
        if not torch.compiler.is_compiling() and transformed():
            return loss
        if loss.requires_grad and not target.is_floating_point():
            asked = {**USUAL, **dict(zip(USUAL, args, strict=False)), **kwargs}
            summed = asked["reduction"] == "sum" or asked["size_average"] is False
            self.logits, self.targets, self.fresh = input.detach(), target, True
            self.plain = not args and kwargs.items() <= USUAL.items()
            self._last = loss.detach(), target, asked["ignore_index"], summed
            self._compiled = torch.compiler.is_compiling()
            # Within somebody's compiled region what is read here would be compiled again when it changes.
            if not torch.compiler.is_compiling():
                self._count(loss, _mean(*self._last))
        return loss

    def _count(self, loss: Tensor, mean: Tensor) -> None:
        """Add it once it is differentiated: many evaluate without ``no_grad``, which is no training."""
        waiting = [mean]

        def differentiated(_: Tensor) -> None:
            if waiting:
                mean = waiting.pop()
                self._total = mean if self._total is None else self._total + mean
                self._calls += 1

        loss.register_hook(differentiated)

    def taken(self, closure: bool) -> Tensor | None:
        """The mean loss of an example since the last step, over the batches that were differentiated.

        Args:
            closure: the step that begins has one, which has not been called yet: the last loss is the latest.
        """
        if self.fresh:
            self.metric = not (self._calls or self._compiled or closure)
        if self._calls and self._total is not None:
            return self._total / self._calls
        if self.metric and self.fresh:
            return None
        return _mean(*self._last) if self._last is not None and (self.fresh or closure) else None

    def forget(self, closure: bool = False) -> None:
        """Begin anew; what came in the closure of a step is kept for the next one."""
        self._total, self._calls, self.fresh = None, 0, False
        if not closure:
            self.logits = self.targets = self._last = None


def _mean(loss: Tensor, targets: Tensor, ignored: int, summed: bool) -> Tensor:
    """Of a loss that was summed over examples, or left one an example."""
    if not summed and not loss.ndim:
        return loss
    return loss.float().sum() / (targets != ignored).sum().clamp(min=1)
