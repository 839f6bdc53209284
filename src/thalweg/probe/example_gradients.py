"""How large each example's gradient is and which way it points, without writing the gradients out.

The trick is Goodfellow's (arXiv 1510.01799): what a layer saw and the gradient of what it gave are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import nearest
from thalweg.probe._example_batch import (
    LossFn,
    count,
    losses_of,
    taken,
    trainable,
    undisturbed,
    unwrapped,
)
from thalweg.probe._example_moments import check_chunk, own_sums
from thalweg.probe._example_pass import example_sums
from thalweg.probe._example_ranks import gathered, group_of, summed
from thalweg.probe._example_reduce import Wanted
from thalweg.probe._wrapped import on_every_rank, one_state
from thalweg.probe.cost import costs

__all__ = [
    "ExampleAlignment",
    "ExampleGradientGram",
    "ExampleGradientNorms",
    "example_alignment",
    "example_gradient_gram",
    "example_gradient_norms",
    "example_losses",
]

MEMORY = "what a backward pass holds without the parameters' gradients, and a few megabytes"


@dataclass(frozen=True)
class ExampleGradientNorms:
    """Euclidean norm of the gradient of each example's loss, in units of loss per unit of parameter.

    Attributes:
        norms: over all parameters, shape (B,), float64.
        per_layer: name of the parameter to the norms of its part, each (B,).
        losses: of the examples, (B,).
        materialised: parameters whose per-example gradients had to be written out, which costs time.
    """

    norms: Tensor
    per_layer: dict[str, Tensor]
    losses: Tensor
    materialised: tuple[str, ...]


@dataclass(frozen=True)
class ExampleGradientGram:
    """Inner products of all pairs of per-example gradients.

    Attributes:
        gram: over all parameters, shape (B, B), float64.
        per_layer: name of the parameter to its share, each (B, B); they add up to ``gram``.
        losses: of the examples, (B,).
        materialised: as in :class:`ExampleGradientNorms`.
    """

    gram: Tensor
    per_layer: dict[str, Tensor]
    losses: Tensor
    materialised: tuple[str, ...]


@dataclass(frozen=True)
class ExampleAlignment:
    """How far each example's gradient goes along a direction.

    Attributes:
        dots: inner products with the direction, shape (B,), float64.
        cosines: the same over both lengths, in [-1, 1]; 0 where a gradient is zero.
        per_layer: name of the parameter to the inner products of its part, each (B,).
        norms: length of each example's gradient, (B,).
        materialised: as in :class:`ExampleGradientNorms`.
    """

    dots: Tensor
    cosines: Tensor
    per_layer: dict[str, Tensor]
    norms: Tensor
    materialised: tuple[str, ...]


@costs(1, 0, memory="the activations of a chunk")
def example_losses(model: nn.Module, batch: Any, loss_fn: LossFn, *, chunk_size: int | None = None) -> Tensor:
    """Loss of each example in evaluation mode, without gradients, shape (B,).

    Args:
        model, batch, loss_fn, chunk_size: as in :func:`example_gradient_norms`.

    Raises:
        ValueError: as there.
    """
    inner, examples, group = unwrapped(model), count(batch), group_of(model)
    size = check_chunk(chunk_size) or examples

    def make() -> Tensor:
        parts = [taken(batch, examples, slice(at, at + size)) for at in range(0, examples, size)]
        return torch.cat([losses_of(inner, part, loss_fn, count(part)) for part in parts])

    with one_state(inner, group), undisturbed(inner), torch.no_grad():
        losses = on_every_rank(make, group, inner, "loss_fn")
    return gathered(losses, group)


@costs(2, 2, memory=MEMORY)
def example_gradient_norms(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    *,
    chunk_size: int | None = None,
    verify: bool = True,
) -> ExampleGradientNorms:
    r"""Norms of per-example gradients from one forward and one backward pass (arXiv 1510.01799).

    For a linear layer with inputs :math:`a_{it}` and output gradients :math:`d_{it}` (t counts positions) the
    gradient is :math:`g_i = \sum_t d_{it} a_{it}^T`; its norm follows from the thin matrices, by whichever of
    two formulas is cheaper: through :math:`g_i` a few examples at a time, or through the positions,
    :math:`\sum_{ts} (d_{it} \cdot d_{is})(a_{it} \cdot a_{is})`. Convolutions, embeddings, scales and shifts
    of normalisations, attention (also ``nn.MultiheadAttention``) and parameters that are used several times
    or through other operations (tied, transposed, cast, weight-normalised) go the same way. What has no rule
    is written out by ``torch.func.vmap`` in chunks and listed as ``materialised``. Two examples are also run
    by themselves: a layer whose result differs from their plain gradients is written out too.

    Nothing is left behind: evaluation mode (batch normalisation in training mode mixes the examples, so that
    none has a gradient of its own), no dropout, ``.grad``, running statistics, training flags and torch's
    random state as they were.

    Args:
        model: its parameters that require a gradient count. Under DistributedDataParallel the examples of all
            processes are returned, in order of rank.
        batch: handed to ``loss_fn``. A tensor, or a tuple, list, mapping or dataclass of such; the first one
            has the examples along its first dimension, and every tensor of that length is cut with it.
        loss_fn: ``loss_fn(model, batch)`` returns the loss of every example, shape (B,). A loss averaged over
            the batch is **not** enough: its gradient has already lost which example it came from. Use
            ``reduction="none"`` and average over the positions of one example only. It is called on parts of
            the batch as well, and must not mix the examples.
        chunk_size: examples a forward and backward pass, if the batch does not fit; by default all.
        verify: compare with two plain gradients. Without it a model may draw random numbers.

    Raises:
        ValueError: ``loss_fn`` does not return B finite losses that depend on the parameters, or an example's
            loss depends on the others; the model has no parameter to differentiate, or complex or sharded
            ones; ``batch`` holds no tensor.
    """
    group = group_of(model)
    sums = own_sums(model, batch, loss_fn, Wanted(), chunk_size, verify)
    squared = {name: gathered(norms.double(), group) for name, norms in sums.norms.items()}
    return ExampleGradientNorms(
        norms=torch.stack(list(squared.values())).sum(0).sqrt(),
        per_layer={name: norms.sqrt() for name, norms in squared.items()},
        losses=gathered(sums.losses, group),
        materialised=sums.slow,
    )


@costs(2, 2, memory="a B by B matrix a parameter; blocks of some 16 megabytes; " + MEMORY)
def example_gradient_gram(
    model: nn.Module, batch: Any, loss_fn: LossFn, *, verify: bool = True
) -> ExampleGradientGram:
    r"""Inner products :math:`g_i \cdot g_j` of all pairs of per-example gradients.

    Of layers without positions they come from two B by B products; of others from some rows of all gradients
    at a time. Under DistributedDataParallel only the pairs within a process's own batch are computed.

    Args:
        model, batch, loss_fn, verify: as in :func:`example_gradient_norms`.

    Raises:
        ValueError: as there.
    """
    sums = example_sums(model, batch, loss_fn, Wanted(grams=True), verify=verify)
    grams = {name: gram.double() for name, gram in sums.grams.items()}
    return ExampleGradientGram(sum(grams.values()), grams, sums.losses, sums.slow)  # type: ignore[arg-type]


@costs(4, 4, memory="one copy of the parameters; " + MEMORY)
def example_alignment(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    *,
    direction: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    verify: bool = True,
) -> ExampleAlignment:
    r"""Inner product of each example's gradient with the mean gradient, or with any direction.

    An example with a negative product is made worse by a (small) step that helps the batch. With a
    validation gradient as the direction these are first-order influences (TracIn, arXiv 2002.08484).

    Args:
        direction: parameter name to a tensor of its shape, for every parameter that requires a gradient; by
            default the mean gradient of the batch (of all processes under DistributedDataParallel).
        model, batch, loss_fn, chunk_size, verify: as in :func:`example_gradient_norms`.

    Raises:
        ValueError: as there; ``direction`` does not fit the parameters.
    """
    group = group_of(model)
    params = trainable(unwrapped(model))
    if direction is None and group is not None:
        first = own_sums(model, batch, loss_fn, Wanted(totals=True), chunk_size, verify)
        totals = first.totals
        examples = int(summed(torch.tensor(count(batch), device=next(iter(totals.values())).device), group))
        direction = {name: summed(totals[name], group) / examples for name in params}
    if direction is not None:
        _check_direction(direction, params)
        wanted = Wanted(direction={name: direction[name].detach() for name in params})
    else:
        wanted = Wanted(totals=True, own_direction=True)
    sums = own_sums(model, batch, loss_fn, wanted, chunk_size, verify)
    given, scale = (sums.totals, count(batch)) if direction is None else (direction, 1)
    sizes = [torch.linalg.vector_norm(given[name], dtype=torch.float64) for name in params]
    length = torch.linalg.vector_norm(torch.stack(sizes)) / scale
    dots = {name: gathered(sums.dots[name].double(), group) for name in params}
    norms = gathered(torch.stack([n.double() for n in sums.norms.values()]).sum(0).sqrt(), group)
    whole = torch.stack(list(dots.values())).sum(0)
    tiny = torch.finfo(torch.float64).tiny
    cosines = (whole / (norms * length).clamp_min(tiny)).clamp(-1, 1)
    return ExampleAlignment(whole, cosines, dots, norms, sums.slow)


def _check_direction(direction: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> None:
    for name, p in params.items():
        if name not in direction:
            raise ValueError(f"direction must have an entry for {name!r}{nearest(name, direction)}")
        if direction[name].shape != p.shape:
            expected, got = tuple(p.shape), tuple(direction[name].shape)
            raise ValueError(f"direction[{name!r}] must have shape {expected}, got {got}")
