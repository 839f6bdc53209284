"""A model stood at other weights for a while, to read the loss there; afterwards it is as it was.

Parameters move by swapping ``.data``: no version counter moves, so a graph that waits for its backward pass
stays valid, and what comes back is the very storage that was there. Buffers are replaced by copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from thalweg.probe._checkpoints import Checkpoint, Weights, bare, moving, weights_of
from thalweg.probe._quiet import call
from thalweg.probe._randomness import same_randomness
from thalweg.probe._untouched import untouched

LossOf = Callable[[nn.Module], Any]


class Terrain:
    """Reads the loss of a model at linear combinations of ``points``; made by :func:`terrain`.

    Attributes:
        model: bare, in evaluation mode.
        points: weights by name; an entry that a point does not have counts as zero.
        params: names of the parameters.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossOf, batches: Iterable[Any] | None, points: Sequence[Weights]
    ):
        self.model, self.loss_fn, self.points = model, loss_fn, list(points)
        self.params = dict(model.named_parameters())
        self.norms = normalisations(model)
        self.batches = batches
        # A mask's -infinity mixed with itself is NaN where a coefficient is negative.
        self.fixed = {name for name, _ in model.named_buffers() if _alike([p.get(name) for p in self.points])}

    @torch.no_grad()
    def stand(self, *coefficients: float, only: Collection[str] | None = None) -> None:
        """Move to the combination with ``coefficients``; entries outside ``only`` stay at the first point."""
        for name, own in moving(self.model).items():
            moves = name not in self.fixed and (only is None or name in only)
            at = coefficients if moves else (1.0,)
            value = _combined(at, [point.get(name) for point in self.points], own)
            if name in self.params:
                own.data = value
            else:
                own.copy_(value)
        # Around a caller's autocast it would keep the casts of the weights that stood here before.
        torch.clear_autocast_cache()
        if self.norms and self.batches is not None:
            self._refresh()

    def _refresh(self) -> None:
        """Normalisation statistics at this place: the mean over the batches, with dropout off."""
        momenta = [norm.momentum for norm in self.norms]
        try:
            for norm in self.norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            seen = 0
            for batch in self.batches or ():
                call(self.model, batch)
                seen += 1
            if not seen:
                raise ValueError("norm_batches must hold at least one batch each time it is read, got none")
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()

    def loss(self, *coefficients: float, only: Collection[str] | None = None) -> float:
        """The loss at a combination; every place sees the same random numbers."""
        with torch.no_grad(), same_randomness():
            self.stand(*coefficients, only=only)
            return scalar(self.loss_fn(self.model))


def scalar(value: Any) -> float:
    """The loss as a number, NaN and infinity included.

    Raises:
        ValueError: it is no scalar.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    if isinstance(value, Real):
        return float(value)
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"loss_fn must return a scalar, got {got}")


def normalisations(model: nn.Module) -> list[_NormBase]:
    """Modules whose running statistics belong to the weights that they were gathered with."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def _statistics(model: nn.Module) -> set[str]:
    """Names of their running statistics."""
    own = {id(b) for norm in normalisations(model) for b in (norm.running_mean, norm.running_var)}
    return {name for name, buffer in model.named_buffers() if id(buffer) in own}


def _alike(values: Sequence[Tensor | None]) -> bool:
    """Whether all points that have the entry have the same."""
    first, *others = [value for value in values if value is not None]
    return all(torch.equal(first, other.to(first)) for other in others)


def _combined(coefficients: Sequence[float], values: Sequence[Tensor | None], own: Tensor) -> Tensor:
    if not own.is_floating_point() and not own.is_complex():
        first = values[0]
        return own if first is None else first.to(own.device)
    wide = torch.promote_types(own.dtype, torch.float32)
    total = torch.zeros_like(own, dtype=wide)
    for coefficient, value in zip(coefficients, values, strict=False):
        if coefficient and value is not None:
            total += coefficient * value.to(own.device, wide)
    return total.to(own.dtype)


def checked_batches(model: nn.Module, norm_batches: Iterable[Any] | None) -> Iterable[Any] | None:
    """None where stored statistics are wanted or there are none; otherwise batches that can be read again."""
    if not normalisations(model):
        return None
    if norm_batches is None:
        raise ValueError(
            "norm_batches must be given, since the model keeps normalisation statistics that hold for one "
            "set of weights only; () interpolates the stored ones; got None"
        )
    if isinstance(norm_batches, Tensor):
        raise ValueError("norm_batches must be a list of batches, got a tensor")
    if isinstance(norm_batches, Iterator):
        raise ValueError(
            "norm_batches must be readable again at every point (a list, a DataLoader), "
            f"got {type(norm_batches).__name__}"
        )
    if isinstance(norm_batches, Sequence) and not norm_batches:
        return None
    return norm_batches


@contextmanager
def terrain(
    loss_fn: LossOf,
    model: nn.Module,
    norm_batches: Iterable[Any] | None,
    directions: Sequence[Weights] = (),
    stored: bool = True,
    /,
    **checkpoints: Checkpoint,
) -> Iterator[Terrain]:
    """The model as a :class:`Terrain` over ``checkpoints`` and ``directions``; what was changed returns.

    Args:
        stored: whether normalisation takes the statistics that checkpoints hold, if none are recomputed.
    """
    model = bare(model)
    if not dict(model.named_parameters()):
        raise ValueError("model must have parameters, got none")
    batches = checked_batches(model, norm_batches)
    needed = _statistics(model) if stored and batches is None else ()
    points = [weights_of(name, checkpoint, model, needed) for name, checkpoint in checkpoints.items()]
    flags = [(module, module.training) for module in model.modules()]
    kept = [(p, p.data) for p in model.parameters()]
    buffers = [(m, key, b) for m in model.modules() for key, b in m._buffers.items() if b is not None]
    copies: dict[int, Tensor] = {}
    try:
        with untouched(model):
            for module, key, buffer in buffers:  # shared buffers stay shared
                module._buffers[key] = copies.setdefault(id(buffer), buffer.detach().clone())
            model.eval()
            yield Terrain(model, loss_fn, batches, [*points, *directions])
    finally:
        for p, data in kept:
            p.data = data
        torch.clear_autocast_cache()
        for module, key, buffer in buffers:
            module._buffers[key] = buffer
        for module, training in flags:
            module.training = training
