"""How much of the gradient lies along the few sharpest directions (arXiv 1812.04754), and whether they stay.

A caveat belongs with every such reading: most of that share is oscillation across steep walls. Steps without
it still learn and steps of it alone hardly do (arXiv 2405.16002).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.probe._graphs import check_reachable
from thalweg.probe._named import NamedParams
from thalweg.probe._wrapped import on_every_rank, over_processes
from thalweg.probe.cost import costs
from thalweg.probe.curvature import sharpness
from thalweg.probe.eigenpairs import given, most_products
from thalweg.probe.operator import checked_loss, checked_params, empty_like, flatten, twice_differentiable
from thalweg.probe.parameter_shares import layer_shares

__all__ = ["TopSubspace", "share_in_span", "subspace_overlap", "top_subspace"]


@dataclass(frozen=True)
class TopSubspace:
    """A vector against the span of the top Hessian eigenvectors.

    Attributes:
        share: squared length of the gradient's part in the span over its own, in [0, 1].
        chance: share of a random direction, ``top / n``; also the overlap of random spans.
        overlap: with the span of ``previous``, in [0, 1]; NaN if none was given.
        eigenvalues: the largest, in falling order.
        vectors: their unit vectors, each flat of shape (n,); the next call's ``previous``.
        hvps: Hessian-vector products spent.
    """

    share: float
    chance: float
    overlap: float
    eigenvalues: tuple[float, ...]
    vectors: list[Tensor]
    hvps: int

    def shares(self, model_or_named_params: NamedParams) -> dict[str, float]:
        """Which parameters the span lives in: each one's mean share of the eigenvectors' squared length.

        Args:
            model_or_named_params: as for :func:`layer_shares`, in the order of ``params``.
        """
        each = [layer_shares(vector, model_or_named_params) for vector in self.vectors]
        return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


@torch.no_grad()
@costs(0, 0, memory="none")
def share_in_span(vector: Tensor, basis: Sequence[Tensor] | Tensor) -> float:
    r""":math:`\sum_i (v_i \cdot g)^2 / \|g\|^2` for orthonormal :math:`v_i`; NaN of a zero vector.

    Args:
        vector: flat, shape (n,): a gradient, or an update with learning rate and momentum in it.
        basis: orthonormal vectors of shape (n,).

    Raises:
        ValueError: shapes do not fit, or the basis is not orthonormal.
    """
    rows = _orthonormal("basis", basis)
    if vector.shape != rows.shape[1:]:
        raise ValueError(f"vector must have shape {tuple(rows.shape[1:])}, got {tuple(vector.shape)}")
    wide = vector.to(rows)  # squares of a small gradient would be 0 in float32
    length = torch.linalg.vector_norm(wide)
    if not length > 0:
        return math.nan
    return (rows @ (wide / length)).square().sum().item()


@torch.no_grad()
@costs(0, 0, memory="none")
def subspace_overlap(first: Sequence[Tensor] | Tensor, second: Sequence[Tensor] | Tensor) -> float:
    r""":math:`\frac1k \sum_{ij} (v_i \cdot w_j)^2` in [0, 1]: mean squared cosine of the principal angles.

    Args:
        first, second: orthonormal vectors of shape (n,); k is the smaller of their numbers. Random spans of
            k and l dimensions overlap by max(k, l) / n.

    Raises:
        ValueError: shapes do not fit, or a basis is not orthonormal.
    """
    rows, others = _orthonormal("first", first), _orthonormal("second", second)
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"second must hold vectors of shape ({rows.shape[1]},), got ({others.shape[1]},)")
    return ((rows @ others.to(rows).T).square().sum() / min(len(rows), len(others))).item()


@costs(2, 2, hvps=60, memory="the graph of one gradient and as many parameter copies as iterations")
def top_subspace(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    top: int,
    *,
    gradient: Tensor | None = None,
    previous: Sequence[Tensor] | None = None,
    iterations: int | None = None,
    tol: float = 1e-2,
    generator: torch.Generator | None = None,
    group: Any = None,
) -> TopSubspace:
    """Share of the gradient in the span of the top Hessian eigenvectors (arXiv 1812.04754).

    The paper takes as many as there are classes. Eigenvectors of a small batch line up with that batch's own
    gradient, so take a large one, or a ``gradient`` of other examples. The declared cost is that of 10
    eigenvectors from a cold start.

    Args:
        loss_fn: no argument, returns the scalar loss.
        params: n entries in distinct tensors that require a gradient.
        top: dimensions of the span; by value, not by magnitude.
        gradient: flat, shape (n,), the vector to be judged; by default the gradient of ``loss_fn()``.
        previous: the ``vectors`` of an earlier reading: compared with, and used as a warm start.
        iterations: most Hessian-vector products to spend, at least ``top``; by default 60, and ``top + 3``
            after a warm start.
        tol: largest residual over eigenvalue at which to stop.
        generator, group: as in :func:`sharpness`; the default gradient is averaged over the group too.

    Raises:
        ValueError: as :func:`sharpness` says, or a vector has the wrong shape.
    """
    iterations = most_products(top, iterations, previous, cold=60)
    listed = checked_params(params)
    if gradient is None:
        found = on_every_rank(lambda: _gradient(loss_fn, listed), group, listed[0].device, "loss_fn")
        gradient = over_processes(found, group)  # of which only the direction counts
    reading = sharpness(
        loss_fn,
        listed,
        top=top,
        iterations=iterations,
        tol=tol,
        warm_start=previous,
        generator=generator,
        group=group,
    )
    return TopSubspace(
        share=share_in_span(gradient, reading.vectors),
        chance=top / len(gradient),
        overlap=subspace_overlap(previous, reading.vectors)
        if previous is not None and given(previous)
        else math.nan,
        eigenvalues=reading.eigenvalues,
        vectors=reading.vectors,
        hvps=reading.hvps,
    )


def _gradient(loss_fn: Callable[[], Tensor], listed: list[Tensor]) -> Tensor:
    with twice_differentiable(listed):  # the same random numbers as the Hessian sees
        loss = checked_loss(loss_fn())
        check_reachable("loss_fn", loss)
        found = torch.autograd.grad(loss, listed, allow_unused=True, materialize_grads=True)
    return flatten(found, empty_like(listed))


def _orthonormal(name: str, basis: Sequence[Tensor] | Tensor) -> Tensor:
    rows = basis if isinstance(basis, Tensor) else torch.stack(list(basis))
    if rows.dim() != 2 or not len(rows):
        raise ValueError(f"{name} must hold at least one vector of shape (n,), got shape {tuple(rows.shape)}")
    gram = rows.double() @ rows.double().T
    if not torch.allclose(gram, torch.eye(len(rows)).to(gram), atol=1e-3):
        raise ValueError(f"{name} must be orthonormal, got inner products up to {gram.abs().max():.3g}")
    return rows.double()
