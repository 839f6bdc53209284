"""Sharpness: the largest eigenvalue of the loss Hessian (arXiv 2110.04369), also as an optimizer sees it.

Compare it with :func:`thalweg.probe.stability_limit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_count
from thalweg.probe.cost import costs
from thalweg.probe.eigenvalues import lanczos
from thalweg.probe.operator import HvpOperator, checked_params, flatten, hvp_operator
from thalweg.probe.preconditioner import preconditioner_of

__all__ = ["Sharpness", "preconditioned_sharpness", "sharpness"]

MEMORY = "the graph of one gradient and as many parameter copies as iterations"
# Share of noise in a warm start: a start that is exactly an eigenvector would never see another overtake it.
NOISE = 0.05
# Products before a small residual is believed, for the same reason.
LEAST = 4


@dataclass(frozen=True)
class Sharpness:
    """The largest algebraic eigenvalues of a Hessian, in units of loss over parameter squared.

    Attributes:
        top: the largest, signed: a larger negative eigenvalue does not hide it.
        eigenvalues: the ``top=`` largest, in falling order.
        vectors: their unit vectors, each flat of shape (n,), in the order of ``params``; the next call's
            ``warm_start``. Of the preconditioned matrix, if there was a preconditioner.
        hvps: Hessian-vector products spent.
        residual: length of ``H v - top v``: some eigenvalue lies within this distance of ``top``.
    """

    top: float
    eigenvalues: tuple[float, ...]
    vectors: list[Tensor]
    hvps: int
    residual: float


def _start(operator: HvpOperator, warm: Sequence[Tensor] | None, generator: torch.Generator | None) -> Tensor:
    generator = generator or torch.Generator().manual_seed(0)
    noise = torch.randn(operator.n, generator=generator, device=generator.device).to(operator.like)
    if not warm:
        return noise
    for index, vector in enumerate(warm):
        if vector.shape != (operator.n,):
            raise ValueError(
                f"warm_start[{index}] must have shape ({operator.n},), got {tuple(vector.shape)}"
            )
    mean = torch.stack([vector.detach().to(operator.like) for vector in warm]).sum(0)
    return mean / torch.linalg.vector_norm(mean) + NOISE * noise / torch.linalg.vector_norm(noise)


def _scale(diagonals: Sequence[Tensor | None], params: list[Tensor], like: Tensor) -> Tensor:
    """Square root of a checked diagonal preconditioner, flat."""
    diagonals = list(diagonals)
    if len(diagonals) != len(params):
        raise ValueError(f"preconditioner must hold {len(params)} tensors, got {len(diagonals)}")
    filled = []
    for index, (diagonal, p) in enumerate(zip(diagonals, params, strict=True)):
        diagonal = torch.ones_like(p) if diagonal is None else diagonal
        if diagonal.shape != p.shape:
            expected, got = tuple(p.shape), tuple(diagonal.shape)
            raise ValueError(f"preconditioner[{index}] must have shape {expected}, got {got}")
        if not bool((diagonal.isfinite() & (diagonal >= 0)).all()):
            raise ValueError(f"preconditioner[{index}] must be finite and not negative")
        filled.append(diagonal)
    return flatten(filled, like).sqrt()


@costs(1, 1, hvps=20, memory=MEMORY)
def sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    top: int = 1,
    iterations: int = 20,
    tol: float = 1e-2,
    warm_start: Sequence[Tensor] | None = None,
    preconditioner: Sequence[Tensor | None] | None = None,
    generator: torch.Generator | None = None,
) -> Sharpness:
    r"""Largest eigenvalues of the Hessian of ``loss_fn()`` by Lanczos iteration (arXiv 2110.04369).

    A reading from a cold start takes 10 to 20 products. While training, pass the last reading's ``vectors``
    as ``warm_start`` and ``iterations=4``; ask for ``top=2`` or more where eigenvalues may overtake each
    other. Use one large fixed batch in evaluation mode: a small batch reads
    too high. Neither ``.grad`` nor torch's global random state is touched; see :func:`hvp_operator` for what
    the graph keeps.

    Args:
        loss_fn: no argument, returns the scalar loss.
        params: n entries in distinct tensors that require a gradient.
        top: how many eigenvalues.
        iterations: most Hessian-vector products to spend, at least ``top``.
        tol: largest residual over eigenvalue at which to stop; 0 spends all iterations.
        warm_start: flat vectors of shape (n,), such as ``Sharpness.vectors``.
        preconditioner: :math:`P`, one non-negative tensor shaped like each parameter (None for ones):
            eigenvalues of :math:`P^{1/2} H P^{1/2}`, which are those of :math:`P H`.
        generator: draws the start; by default a private one with seed 0, so that readings repeat.

    Raises:
        ValueError: a count, shape or preconditioner is out of range, or as :func:`hvp_operator` says.
    """
    check_count("top", top)
    check_count("iterations", iterations, top)
    listed = checked_params(params)
    operator = hvp_operator(loss_fn, listed)
    if top > operator.n:
        raise ValueError(f"top must be at most the number of parameters ({operator.n}), got {top}")
    matvec = operator.matvec
    if preconditioner is not None:
        root = _scale(preconditioner, listed, operator.like)

        def matvec(vector: Tensor) -> Tensor:
            return root * operator.matvec(root * vector)

    found = lanczos(matvec, _start(operator, warm_start, generator), iterations, tol, wanted=top, least=LEAST)
    values = tuple(found.eigenvalues[:top].tolist())
    return Sharpness(values[0], values, list(found.vectors), found.products, found.residuals[0].item())


@costs(1, 1, hvps=20, memory=MEMORY + "; one more for the preconditioner")
def preconditioned_sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    top: int = 1,
    iterations: int = 20,
    tol: float = 1e-2,
    warm_start: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Sharpness:
    r"""Sharpness as an adaptive optimizer sees it: of :math:`P^{1/2} H P^{1/2}` (arXiv 2110.04369).

    :math:`P` comes from :func:`preconditioner_of`; it is ones for SGD and before the first step. Learning
    rates that differ between groups are not part of it.

    Args:
        optimizer: holds every one of ``params``; a ``torch.optim.SGD``, ``Adam``, ``AdamW`` or ``RMSprop``,
            or any with a method ``preconditioner(p)``.
        loss_fn, params, top, iterations, tol, warm_start, generator: as in :func:`sharpness`.

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
    )
