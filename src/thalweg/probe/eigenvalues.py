"""Extreme eigenvalues of a symmetric matrix that is known only by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from thalweg._core.checks import check_count, check_not_negative
from thalweg._core.not_finite import NotFiniteError
from thalweg._core.precision import without_autocast
from thalweg.probe.cost import costs

__all__ = ["Lanczos", "lanczos"]

AGAIN = 1  # seed of further starts, not that of the first, which would give the same vector


@dataclass(frozen=True)
class Lanczos:
    r"""Ritz pairs of a symmetric matrix :math:`A`, largest algebraic value first.

    Attributes:
        eigenvalues: all Ritz values, shape (k,), float64 on the host.
        vectors: the first ``wanted`` Ritz vectors as rows of unit length, shape (wanted, n).
        residuals: :math:`\|A v_i - \theta_i v_i\|` of every pair, shape (k,); some eigenvalue of :math:`A`
            lies within this distance of :math:`\theta_i`.
        products: how many products with :math:`A` were spent.
        converged: whether the first ``wanted`` pairs met the tolerance or the space was exhausted.
        weights: share of the start that lies along each Ritz vector, shape (k,), with sum 1: the values and
            these are the Gauss quadrature of the start's spectral measure.
    """

    eigenvalues: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool
    weights: Tensor


@costs(0, 0, memory="as many vectors as iterations; the products are the caller's")
def lanczos(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    tol: float,
    *,
    wanted: int = 1,
    least: int = 1,
) -> Lanczos:
    r"""Lanczos iteration with full re-orthogonalisation.

    Finds the largest *algebraic* eigenvalues, also where negative ones are larger in size (power iteration
    would return those). Ritz values come from below: they never exceed the largest eigenvalue. Stops when
    the residual of each wanted pair is at most ``tol`` times its value's size; the value itself is then
    mostly far closer, since its error falls with the square of the residual. When the Krylov space is
    exhausted before ``wanted`` copies of a repeated eigenvalue can have been seen, it goes on from a random
    direction orthogonal to everything so far.

    Args:
        matvec: product of a symmetric matrix with a vector of shape (n,).
        start: vector of shape (n,), not zero; its device and type are used throughout. A random start
            meets every eigenvector; an exact eigenvector meets no other.
        iterations: most products to spend.
        tol: largest residual over eigenvalue at which to stop; 0 runs all iterations.
        wanted: how many of the largest eigenvalues must converge.
        least: products before the tolerance may stop it. From a start close to one eigenvector the first
            residuals are small whether or not a larger eigenvalue exists.

    Raises:
        ValueError: ``start`` is not a finite non-zero vector, a count is out of range, or a product is not
            finite or has the wrong shape.
    """
    check_not_negative("tol", tol)
    check_count("iterations", iterations)
    check_count("wanted", wanted)
    check_count("least", least)

    def near(values: np.ndarray, residuals: np.ndarray) -> bool:
        # Not the sharper residual squared over the gap: early on the gap is not yet known.
        return bool((residuals[:wanted] <= tol * np.abs(values[:wanted])).all())

    # With tol 0 not even a residual that rounds to 0 ends it: the other pairs are wanted too.
    enough = near if tol > 0 else lambda values, residuals: False
    return iterate(matvec, start, iterations, enough, wanted=wanted, least=max(least, wanted))


@torch.no_grad()
@without_autocast()
def iterate(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    enough: Callable[[np.ndarray, np.ndarray], bool],
    *,
    wanted: int,
    least: int,
) -> Lanczos:
    """:func:`lanczos` until ``enough(values, residuals)``, which is asked from ``least`` products on."""
    if start.dim() != 1 or not bool(start.isfinite().all()) or not bool(start.any()):
        raise ValueError(f"start must be a finite vector that is not zero, got shape {tuple(start.shape)}")
    n = start.numel()
    iterations = min(iterations, n)
    wanted = min(wanted, iterations)
    noise = torch.Generator().manual_seed(AGAIN)
    basis = start.new_empty(iterations, n)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    exhausted = 0
    direction = start / length(start)
    while True:
        k = len(diagonal)
        basis[k] = direction
        product = matvec(direction)
        if product.shape != start.shape:
            raise ValueError(f"matvec must return shape {tuple(start.shape)}, got {tuple(product.shape)}")
        diagonal.append(torch.dot(direction, product).item())
        span = basis[: k + 1]
        product = orthogonal_to(span, product)
        beta = length(product)
        if not np.isfinite(diagonal[-1] + beta):
            raise NotFiniteError(
                f"matvec must return finite vectors, got a non-finite one at product {k + 1}"
            )
        values, rotation = eigh_tridiagonal(np.array(diagonal), np.array(off_diagonal))
        values, rotation = values[::-1], rotation[:, ::-1]
        residuals = beta * np.abs(rotation[-1])
        full = k + 1 == n
        if beta <= torch.finfo(start.dtype).eps * n**0.5 * np.abs(values).max():
            # Each exhausted space holds one copy of every eigenvalue that its start could see.
            exhausted += 1
            converged = full or exhausted >= wanted
            random = torch.randn(n, generator=noise, dtype=start.dtype).to(start)
            product, beta = orthogonal_to(span, random), 0.0
            direction = product / max(length(product), torch.finfo(start.dtype).tiny)
        else:
            converged = full or (k + 1 >= least and enough(values, residuals))
            direction = product / beta
        if converged or k + 1 == iterations:
            break
        off_diagonal.append(beta)
    mixture = torch.from_numpy(rotation[:, :wanted].T.copy()).to(start)
    return Lanczos(
        eigenvalues=torch.from_numpy(values.copy()),
        vectors=mixture @ basis[: k + 1],
        residuals=torch.from_numpy(residuals.copy()),
        products=k + 1,
        converged=converged,
        weights=torch.from_numpy(rotation[0] ** 2),
    )


def length(vector: Tensor) -> float:
    """Euclidean, also where the squares of float32 would be 0 or infinite."""
    plain = torch.linalg.vector_norm(vector).item()
    return plain if 1e-12 < plain < 1e18 else torch.linalg.vector_norm(vector, dtype=torch.float64).item()


def orthogonal_to(span: Tensor, vector: Tensor) -> Tensor:
    # Twice is enough (Kahan): the second pass removes what rounding left of the first.
    for _ in range(2):
        vector = vector - span.T @ (span @ vector)
    return vector
