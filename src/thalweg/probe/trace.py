r"""Trace and Frobenius norm of a curvature matrix from a few products, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_count
from thalweg._core.precision import without_autocast
from thalweg.probe.cost import costs
from thalweg.probe.eigenpairs import drawn, private_generator
from thalweg.probe.eigenvalues import length
from thalweg.probe.operator import CurvatureOperator, check_operator

__all__ = ["Hutchinson", "XTrace", "hutchinson", "xtrace"]


@dataclass(frozen=True)
class Hutchinson:
    r"""Estimates from the same products; a standard error is the samples' deviation over their root number.

    Attributes:
        trace: of the matrix :math:`A`, in units of loss over parameter squared.
        trace_error: its standard error; the truth lies within two of them 19 times in 20.
        per_parameter: trace of each parameter's diagonal block, in the order of ``params``; their sum is
            ``trace``.
        frobenius_squared: :math:`\|A\|_F^2`, the sum of squared eigenvalues.
        frobenius_squared_error: its standard error.
        hvps: products spent.
    """

    trace: float
    trace_error: float
    per_parameter: tuple[float, ...]
    frobenius_squared: float
    frobenius_squared_error: float
    hvps: int

    @property
    def frobenius(self) -> float:
        """Frobenius norm; slightly low on average, as the root of an unbiased estimate is."""
        return math.sqrt(self.frobenius_squared)


@dataclass(frozen=True)
class XTrace:
    """The trace by XTrace.

    Attributes:
        trace: in units of loss over parameter squared.
        error: estimated standard error; 0 where the matrix has so low a rank that the trace is exact.
        hvps: products spent.
    """

    trace: float
    error: float
    hvps: int


@torch.no_grad()
@costs(0, 0, hvps=30, memory="three vectors")
def hutchinson(
    operator: CurvatureOperator, samples: int = 30, *, generator: torch.Generator | None = None
) -> Hutchinson:
    r"""Trace and squared Frobenius norm as means of :math:`v^\top A v` and :math:`\|A v\|^2` over signs v.

    For symmetric :math:`A` the relative deviation of the trace is at most
    :math:`\sqrt{2/\text{samples}}\,\|A\|_F / \operatorname{tr} A`; use :func:`xtrace` where a few eigenvalues
    hold most of it. The parts of :math:`v^\top A v` that belong to one parameter estimate the trace of its
    block, without further products.

    Args:
        operator: symmetric.
        samples: products to spend, at least 2.
        generator: draws the signs; by default a private one with seed 0.

    Raises:
        ValueError: ``samples`` is below 2, or ``operator`` is none.
    """
    check_count("samples", samples, low=2)
    check_operator(operator)
    generator = private_generator(generator)
    sizes = [shape.numel() for shape in operator.shapes]
    blocks, squares = [], []
    for _ in range(samples):
        signs = drawn(operator.n, operator.like, generator).sign()
        product = operator.matvec(signs)
        blocks.append(torch.stack([part.sum(dtype=torch.float64) for part in (signs * product).split(sizes)]))
        squares.append(product.new_tensor(length(product) ** 2, dtype=torch.float64))
    per_parameter = torch.stack(blocks)
    trace, trace_error = _mean_and_error(per_parameter.sum(1))
    square, square_error = _mean_and_error(torch.stack(squares))
    return Hutchinson(
        trace, trace_error, tuple(per_parameter.mean(0).tolist()), square, square_error, samples
    )


@torch.no_grad()
@without_autocast()
@costs(0, 0, hvps=30, memory="as many vectors as products")
def xtrace(
    operator: CurvatureOperator, products: int = 30, *, generator: torch.Generator | None = None
) -> XTrace:
    r"""Trace by XTrace (arXiv 2301.07825): what a random subspace holds exactly, the rest by sampling.

    Half the products find the subspace :math:`Q` of :math:`A\Omega` and half measure it; each test vector in
    turn is kept out of the subspace and used for the rest, which makes the estimate exchangeable and
    unbiased. With rapidly falling eigenvalues the error is orders of magnitude below :func:`hutchinson`'s at
    the same cost, and with a flat spectrum it is no worse than with half as many samples.

    Args:
        operator: symmetric.
        products: to spend, an even number of at least 4; at most 2 n are of use.
        generator: draws the test vectors; by default a private one with seed 0.

    Raises:
        ValueError: ``products`` is odd or below 4, or ``operator`` is none.
    """
    check_count("products", products, low=4)
    check_operator(operator)
    if products % 2:
        raise ValueError(f"products must be even, got {products}")
    generator, n = private_generator(generator), operator.n
    k = min(products // 2, n)
    tests = torch.stack([drawn(n, operator.like, generator) for _ in range(k)], dim=1)
    image = torch.stack([operator.matvec(column) for column in tests.T], dim=1)
    basis, upper = torch.linalg.qr(image)
    pivots, floor = upper.diagonal().abs(), 10 * torch.finfo(image.dtype).eps
    exhausted = k == n or bool(pivots.min() <= floor * pivots.max())
    if exhausted:
        left, sizes, _ = torch.linalg.svd(image, full_matrices=False)
        kept = sizes > floor * sizes.max()
        basis = left[:, kept] if k < n else left
    inner = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64, device=basis.device)
    for column, vector in enumerate(basis.T):
        inner[:, column] = (basis.T @ operator.matvec(vector)).double()
    spent = k + len(inner)
    if exhausted:  # the subspace is the whole range
        return XTrace(inner.trace().item(), 0.0, spent)

    inner, upper, seen = (inner + inner.T) / 2, upper.double(), (basis.T @ tests).double()
    # Column i of ``missing``: the direction that the subspace loses without test vector i.
    missing = torch.linalg.solve_triangular(upper.T, torch.eye(k).to(upper), upper=False)
    missing = missing / torch.linalg.vector_norm(missing, dim=0)
    # Each test vector within the subspace that it had no part in, in coordinates of ``basis``.
    within = seen - missing * (missing * seen).sum(0)
    outside = tests.square().sum(0, dtype=torch.float64) - within.square().sum(0)
    rest = (seen * upper).sum(0) - 2 * (within * upper).sum(0) + (within * (inner @ within)).sum(0)
    held = inner.trace() - (missing * (inner @ missing)).sum(0)
    trace, error = _mean_and_error(held + (n - k + 1) * rest / outside)
    return XTrace(trace, error, spent)


def _mean_and_error(samples: Tensor) -> tuple[float, float]:
    return samples.mean().item(), (samples.std() / len(samples) ** 0.5).item()
