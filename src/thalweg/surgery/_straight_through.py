"""Git Re-Basin's third search (arXiv 2209.04836): permutations that descend on the loss halfway."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from thalweg.surgery._axis_run import HOOKS, makes_weights
from thalweg.surgery._calibration import LossFn, at_least_float, loss_of
from thalweg.surgery._edit import copied
from thalweg.surgery._matching import Match, Matching
from thalweg.surgery._orders import Permutations, Piece, Symmetry

MOMENTUM = 0.9


class Descent(NamedTuple):
    """What is descended on, and how long: batches are read in turn, one a step."""

    loss_fn: LossFn
    batches: Sequence[Any]
    steps: int
    lr: float


class StraightThrough(Matching):
    r"""Weight matching of the model to free weights, which learn where it should be matched to.

    The free weights begin as the reference :math:`A`. Each step matches the model :math:`B` to them, starting
    where the last one ended, and moves them by SGD along the gradient of the loss at
    :math:`(A + \pi(B)) / 2`, as if :math:`\pi(B)` were the free weights themselves. What counts is the order
    whose batch had the lowest loss, or the first, which is plain weight matching, if that is as good over all
    batches.
    """

    def __init__(
        self,
        symmetry: Symmetry,
        pieces: Sequence[Piece],
        reference: nn.Module,
        model: Mapping[str, Tensor],
        descent: Descent,
    ):
        self.reference, self.model = dict(reference.named_parameters()), model
        super().__init__(symmetry, pieces, self.reference, model)
        self.descent, self.middle = descent, _quiet(copied(reference))
        self.weights = dict(self.middle.named_parameters())

    @torch.enable_grad()
    def run(self, generator: torch.Generator, sweeps: int, held: Collection[int] = ()) -> Match:
        theirs = {name: tensor.clone() for name, tensor in self.model.items()}
        names = dict.fromkeys(piece.name for piece in self.pieces)
        free = {n: p.detach().to(at_least_float(p), copy=True) for n in names for p in [self.reference[n]]}
        optimizer = torch.optim.SGD(free.values(), lr=self.descent.lr, momentum=MOMENTUM)
        perms, passes, lowest = self.symmetry.identity(), 0, float("inf")
        first: Match | None = None
        for batch in itertools.islice(itertools.cycle(self.descent.batches), self.descent.steps):
            found = Matching(self.symmetry, self.pieces, free, theirs).run(generator, sweeps, held)
            perms, passes = composed(self.symmetry, perms, found.perms), passes + found.sweeps
            self.symmetry.apply(theirs, found.perms)
            loss = self._halfway(theirs, batch)
            if loss.item() < lowest:
                lowest, best = loss.item(), Match(perms, passes, found.settled)
                first = first or best
            slopes = torch.autograd.grad(loss, [self.weights[name] for name in names], allow_unused=True)
            for p, slope in zip(free.values(), slopes, strict=True):
                p.grad = None if slope is None else slope.to(p.dtype) / 2
            optimizer.step()
        assert first is not None
        better = best is not first and self.objective(best.perms) > self.objective(first.perms)
        return replace(best if better else first, sweeps=passes)

    def objective(self, perms: Permutations) -> float:
        """Minus the mean loss halfway over the batches."""
        theirs = {name: tensor.clone() for name, tensor in self.model.items()}
        self.symmetry.apply(theirs, perms)
        with torch.no_grad():
            losses = [self._halfway(theirs, batch).item() for batch in self.descent.batches]
        return -sum(losses) / len(losses)

    def _halfway(self, theirs: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Loss of the average of both models."""
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(self.reference[name].lerp(theirs[name].to(self.reference[name]), 0.5))
        return loss_of(self.middle, batch, self.descent.loss_fn)


def composed(symmetry: Symmetry, first: Permutations, second: Permutations) -> Permutations:
    """The order after units in the order of ``first`` are put into that of ``second``."""
    made = {}
    for label, order in second.items():
        parent = symmetry.units[label].parent
        rows = first[label] if parent is None else first[label][second[parent]]
        made[label] = rows.gather(-1, order)
    return made


def _quiet(model: nn.Module) -> nn.Module:
    """Without dropout and hooks (but those that make weights); batches are normalised by themselves."""
    for p in model.parameters():
        p.requires_grad_(True)
    for module in model.eval().modules():
        # Running statistics belong to one set of weights.
        module.training = isinstance(module, _NormBase)
        for name in HOOKS:
            kept = {key: hook for key, hook in getattr(module, name).items() if makes_weights(hook)}
            setattr(module, name, OrderedDict(kept))
    return model
