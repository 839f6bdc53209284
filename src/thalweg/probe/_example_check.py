"""A few examples run by themselves: what shapes they make, and what their gradients truly are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._example_batch import LossFn, changed, count, losses_of, taken
from thalweg.probe._example_graph import types_in
from thalweg.probe._graphs import check_reachable, dense


def alike(batch: Any, examples: int, number: int) -> list[int]:
    """Examples with which a model does what it does with the whole batch: where a mask masks most."""
    found: list[int] = []

    def note(t: Tensor) -> None:
        if t.dim() > 1 and t.shape[0] == examples and t.numel() and bool(((t == 0) | (t == 1)).all()):
            found.append(int(t.flatten(1).sum(1).argmin()))

    changed(batch, note)
    return [*dict.fromkeys([*found, *range(min(number, examples))]), *[0] * number][:number]


class Few:
    """Two or so examples on their own: what shapes they make, and what their gradients truly are."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        loss_fn: LossFn,
        params: list[Tensor],
        sizes: set[int],
        verify: bool,
    ) -> None:
        examples = count(batch)
        # Of another number than any chunk, or shapes would not show which dimension counts examples.
        number = next(n for n in (2, 3, 4) if n not in sizes)
        self.chosen = [examples // 2, examples - 1, 0, 0][:number]
        self.losses = losses_of(model, taken(batch, examples, self.chosen), loss_fn, number)
        if not self.losses.requires_grad:
            raise ValueError("loss_fn must return losses that require a gradient, got ones without")
        check_reachable("loss_fn", self.losses)
        # Squared norms of the true gradients, (params, 2).
        self.norms = torch.stack([self._norms(k, params) for k in range(2)], 1) if verify else None
        # Rounding of the coarsest type that the model computes in, autocast included.
        self.tolerance = 3 * max(torch.finfo(dtype).eps for dtype in types_in(self.losses)) ** 0.5

    def _norms(self, k: int, params: list[Tensor]) -> Tensor:
        gradients = torch.autograd.grad(
            self.losses[k], params, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        norms = [torch.linalg.vector_norm(dense(g), dtype=torch.float64) for g in gradients]
        return torch.stack(norms).square()

    def disagreeing(self, found: Mapping[str, Tensor], names: list[str]) -> set[str]:
        """Parameters whose squared norms are not those of the examples run by themselves."""
        here = [index for index, name in enumerate(names) if name in found]
        if self.norms is None or not here:
            return set()
        ours = torch.stack([found[names[index]][self.chosen[:2]] for index in here]).double().sqrt()
        true = self.norms[here].sqrt()
        allowed = self.tolerance * (true + self.tolerance * self.norms.sum(0).sqrt())
        wrong = ((ours - true).abs() > allowed).any(1).tolist()
        return {names[index] for index, off in zip(here, wrong, strict=True) if off}

    def compare_losses(self, losses: Tensor, examples: int) -> None:
        for k, example in enumerate(self.chosen[:2]):
            together, alone = losses[example].item(), self.losses[k].item()
            if abs(together - alone) > self.tolerance * (abs(alone) + losses.abs().mean().item()):
                few = len(self.chosen)
                raise ValueError(
                    "loss_fn must give an example the same loss whatever else is in the batch, got "
                    f"{together:g} for example {example} among {examples} and {alone:g} among {few} (a mean "
                    "or statistics over the batch, or random numbers, which verify=False allows)"
                )
