"""How far a loss falls by fitting noise alone: p/2n nats, in the unit of the loss at hand (Wilks 1938)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.probe._logits import logits_of
from thalweg.watch.labels import IGNORED, NAMES

__all__ = ["FittedNoise"]

# Of parts of a batch the same multiple of a known loss, to so many.
ALIKE = 0.01
# After so many readings without a known kind none is looked for any more.
TRIES = 3
# More than any loss falls: nobody knows how much can be learnt by heart.
UNKNOWN = 1e30


@dataclass(frozen=True)
class _Likelihood:
    """Of one known kind, in a part of a batch: the sum of its terms, their number, and that of examples."""

    kind: str
    total: float
    terms: int
    examples: int


class FittedNoise:
    """Watches which kind of loss comes of a model's outputs, and so what a weight can learn by heart.

    A fit of p weights gains p/2n nats of likelihood on n examples of pure noise. Of a loss that is c times
    the negative logarithm of a likelihood, of classes or of yes and no, that is c p/2n; one that is c times a
    sum of d squared errors an example loses the share p/nd of the noise's variance, whatever c. Nothing is
    known of others, such as weighted, smoothed or penalised ones, rankings and hinges.
    """

    def __init__(self) -> None:
        self.kind: str | None = None
        self.scale = 0.0
        self.tries = 0
        self._parts: list[tuple[float, list[_Likelihood]]] = []

    @contextmanager
    def part(self, model: nn.Module, batch: Any) -> Iterator[list[Tensor]]:
        """Hears what ``model`` returns within; the loss of the part is put into the list that it gives."""
        outputs: list[Any] = []

        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[:] = [output]

        losses: list[Tensor] = []
        handle = model.register_forward_hook(hear)
        try:
            yield losses
        finally:
            handle.remove()
        worth = self.kind is not None or self.tries < TRIES
        if worth and losses and outputs and losses[0].numel() == 1:
            found = _known(outputs[0], _targets(batch), self.kind is None)
            self._parts.append((losses[0].item(), found))

    def bound(self, weights: int, examples: int) -> float:
        """How far the loss falls, at most, by fitting so many weights to the noise of so many examples.

        From the parts heard since the last call; 1e30 if the loss is of no known kind.
        """
        parts, self._parts = self._parts, []
        if not parts or not all(loss > 0 for loss, _ in parts):
            return UNKNOWN
        if self.kind is None:
            self.tries += 1
            self._tell(parts)
        mine = [(loss, one) for loss, found in parts for one in found if one.kind == self.kind]
        if len(mine) < len(parts):
            return UNKNOWN
        each = sum(one.terms for _, one in mine) / sum(one.examples for _, one in mine)
        if self.kind == "squares":
            share = weights / (examples * each)
            return sum(loss for loss, _ in mine) / len(mine) * share / (1 - share) if share < 1 else UNKNOWN
        # A mean over terms is that of an example over how many it has.
        return self.scale / each * weights / (2 * examples)

    def _tell(self, parts: list[tuple[float, list[_Likelihood]]]) -> None:
        kinds = [one.kind for one in parts[0][1]]
        for kind in kinds:
            same = [(loss, one) for loss, found in parts for one in found if one.kind == kind]
            if len(same) < len(parts) or len(same) < 2 or not all(one.total > 0 for _, one in same):
                continue
            ratios = [loss * one.terms / one.total for loss, one in same]
            if max(ratios) - min(ratios) <= ALIKE * max(ratios):
                self.kind, self.scale = kind, sum(ratios) / len(ratios)
                return


def _targets(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        return next((batch[name] for name in NAMES if isinstance(batch.get(name), Tensor)), None)
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)
    return batch[1] if pair else None


@torch.no_grad()
def _known(output: Any, targets: Tensor | None, sums: bool) -> list[_Likelihood]:
    """Every known kind of loss that these outputs and targets have; without ``sums`` these are zero."""
    logits = logits_of(output)
    if targets is None or not isinstance(logits, Tensor) or not logits.is_floating_point():
        return []
    logits, targets = logits.detach(), targets.to(logits.device)
    if not targets.is_floating_point():
        beside = [("classes", logits, targets)]
        if targets.dim() > 1:  # those of a causal language model come one place late
            beside.append(("classes, late", logits[..., :-1, :], targets[..., 1:]))
        return [one for given in beside if (one := _classes(*given, sums)) is not None]
    if logits.numel() != targets.numel() or not targets.dim():
        return []
    values, targets = logits.float().reshape(len(targets), -1), targets.float().reshape(len(targets), -1)
    squares = (values - targets).square().sum().item() if sums else 0.0
    found = [_Likelihood("squares", squares, targets.numel(), len(targets))]
    if bool(((targets >= 0) & (targets <= 1)).all()):
        crossed = F.binary_cross_entropy_with_logits(values, targets, reduction="sum").item() if sums else 0.0
        found.append(_Likelihood("yes and no", crossed, targets.numel(), len(targets)))
    return found


def _classes(kind: str, logits: Tensor, targets: Tensor, sums: bool) -> _Likelihood | None:
    if logits.shape[:-1] != targets.shape or not targets.numel() or targets.dtype is torch.bool:
        return None
    counted = targets != IGNORED
    if not bool(((targets < logits.shape[-1]) & (targets >= 0) | ~counted).all()) or not bool(counted.any()):
        return None
    total = 0.0
    if sums:
        rows, wanted = logits.flatten(0, -2).float(), targets.flatten().long()
        total = F.cross_entropy(rows, wanted, ignore_index=IGNORED, reduction="sum").item()
    return _Likelihood(kind, total, int(counted.sum()), len(targets))
