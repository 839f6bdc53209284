"""Sharpness: the largest eigenvalue of the loss Hessian (arXiv 2110.04369), also as an optimizer sees it.

Compare it with :func:`thalweg.probe.stability_limit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg._core.factored import Factored
from thalweg.probe.cost import costs
from thalweg.probe.eigenpairs import Sharpness, most_products, preconditioned, top_eigenpairs
from thalweg.probe.gauss_newton import ggn_operator
from thalweg.probe.operator import checked_params, hvp_operator
from thalweg.probe.preconditioner import preconditioner_of
from thalweg.probe.ranks import over_group

__all__ = ["gauss_newton_sharpness", "preconditioned_sharpness", "sharpness"]

MEMORY = "the graph of one gradient and as many parameter copies as iterations"


@costs(1, 1, hvps=20, memory=MEMORY)
def sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    top: int = 1,
    iterations: int | None = None,
    tol: float = 1e-2,
    warm_start: Sequence[Tensor] | None = None,
    preconditioner: Sequence[Tensor | Factored | None] | None = None,
    generator: torch.Generator | None = None,
    group: Any = None,
) -> Sharpness:
    r"""Largest eigenvalues of the Hessian of ``loss_fn()`` by Lanczos iteration (arXiv 2110.04369).

    A reading from a cold start takes 10 to 20 products. While training, pass the last reading's ``vectors``
    as ``warm_start``: it then takes 4 products, or ``top + 3`` for several eigenvalues. Read every 10 steps
    up to the edge of stability, the leading eigenvalue alone was then within 1% of the explicit Hessian's; of
    the five largest each was within 6% of the leading one, and 1% on average. Ask for ``top=2`` or more where
    eigenvalues may overtake each other.

    Use one large fixed batch in evaluation mode: a small batch reads too high. Neither ``.grad`` nor torch's
    global random state is touched; see :func:`hvp_operator` for what the graph keeps. The parameters of one
    layer alone give the sharpness of its diagonal block.

    Under data parallelism this is the sharpness of the rank's own batch, unless ``group`` is given.

    Args:
        loss_fn: no argument, returns the scalar loss.
        params: n entries in distinct tensors that require a gradient.
        top: how many eigenvalues.
        iterations: most Hessian-vector products to spend, at least ``top``; by default as in
            :func:`top_eigenpairs`.
        tol: largest residual over eigenvalue at which to stop; 0 spends all iterations.
        warm_start: flat vectors of shape (n,), such as ``Sharpness.vectors``.
        preconditioner: :math:`P`, as :func:`preconditioned` takes it, one non-negative tensor shaped like
            each parameter (None for ones): eigenvalues of :math:`P^{1/2} H P^{1/2}`, which are those of
            :math:`P H`.
        generator: draws the start; by default a private one with seed 0, so that readings repeat.
        group: process group whose members each hold an equal part of the batch and all call this, with the
            same arguments otherwise; None for one.

    Raises:
        ValueError: a count, shape or preconditioner is out of range, or as :func:`hvp_operator` says; with a
            group, on every rank if on one.
    """
    most_products(top, iterations, warm_start)  # refused before the loss is computed
    listed = checked_params(params)
    operator = over_group(lambda: hvp_operator(loss_fn, listed), listed, group)
    if preconditioner is not None:
        operator = preconditioned(operator, preconditioner)
    return top_eigenpairs(
        operator, top=top, iterations=iterations, tol=tol, warm_start=warm_start, generator=generator
    )


@costs(1, 1, hvps=20, memory=MEMORY)
def gauss_newton_sharpness(
    output_fn: Callable[[], Tensor],
    loss_fn: Callable[[Tensor], Tensor],
    params: Iterable[Tensor],
    *,
    top: int = 1,
    iterations: int | None = None,
    tol: float = 1e-2,
    warm_start: Sequence[Tensor] | None = None,
    preconditioner: Sequence[Tensor | Factored | None] | None = None,
    generator: torch.Generator | None = None,
    group: Any = None,
) -> Sharpness:
    """Largest eigenvalues of the Gauss-Newton matrix of ``loss_fn(output_fn())``; none is negative.

    A product costs about one gradient, half as much as one with the Hessian.

    Args:
        output_fn, loss_fn, params: as in :func:`ggn_operator`.
        top, iterations, tol, warm_start, preconditioner, generator, group: as in :func:`sharpness`.

    Raises:
        ValueError: a count, shape or preconditioner is out of range, or as :func:`ggn_operator` says.
    """
    most_products(top, iterations, warm_start)  # refused before the loss is computed
    listed = checked_params(params)
    operator = over_group(lambda: ggn_operator(output_fn, loss_fn, listed), listed, group)
    if preconditioner is not None:
        operator = preconditioned(operator, preconditioner)
    return top_eigenpairs(
        operator, top=top, iterations=iterations, tol=tol, warm_start=warm_start, generator=generator
    )


@costs(1, 1, hvps=20, memory=MEMORY + "; one more for the preconditioner")
def preconditioned_sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    top: int = 1,
    iterations: int | None = None,
    tol: float = 1e-2,
    warm_start: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    group: Any = None,
) -> Sharpness:
    r"""Sharpness as an adaptive optimizer sees it: of :math:`P^{1/2} H P^{1/2}` (arXiv 2110.04369).

    :math:`P` comes from :func:`preconditioner_of`: a diagonal, or a matrix for an Adam within a subspace
    (GaLore); ones for SGD, before the first step and for chains without either (Lion's signs). Learning
    rates that differ between groups are not part of it. For the Gauss-Newton matrix, give
    :func:`gauss_newton_sharpness` the ``preconditioner=preconditioner_of(optimizer, params)``.

    Args:
        optimizer: holds every one of ``params``; a ``torch.optim.SGD``, ``Adam``, ``AdamW`` or ``RMSprop``,
            or any with a method ``preconditioner(p)``, such as every :class:`thalweg.optim.Descent`.
        loss_fn, params, top, iterations, tol, warm_start, generator, group: as in :func:`sharpness`.

    Raises:
        ValueError: as :func:`sharpness` and :func:`preconditioner_of` say.
    """
    listed = checked_params(params)
    return sharpness(
        loss_fn,
        listed,
        top=top,
        iterations=iterations,
        tol=tol,
        warm_start=warm_start,
        preconditioner=preconditioner_of(optimizer, listed),
        generator=generator,
        group=group,
    )
