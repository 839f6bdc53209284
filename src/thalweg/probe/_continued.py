"""Several eigenpairs continued from an earlier reading: Rayleigh-Ritz in a space that grows by residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg._core.not_finite import NotFiniteError
from thalweg._core.precision import without_autocast
from thalweg.probe.eigenvalues import length


class Continued(NamedTuple):
    """Ritz pairs, the largest first; residuals are lengths of :math:`A v_i - \\theta_i v_i`."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int


@torch.no_grad()
@without_autocast()
def continued(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    noise: Tensor,
    iterations: int,
    tol: float,
    *,
    wanted: int,
    least: int,
) -> Continued:
    """The ``wanted`` largest eigenpairs from approximations to them.

    One product a vector of ``start``, then one for each further direction: the residual of the pair that is
    relatively worst, the first with ``noise`` in it, since exact eigenvectors would never see another
    overtake them. A Krylov space of one mixed vector, as Lanczos builds, would spend most of its products on
    taking the mixture apart again.

    Args:
        matvec: product of a symmetric matrix with a vector of shape (n,).
        start: rows, shape (k, n), finite.
        noise: shape (n,), short against 1.
        iterations: most products to spend, at least k.
        tol, wanted, least: as for :func:`thalweg.probe.lanczos`.

    Raises:
        ValueError: a product is not finite.
    """
    n = start.shape[1]
    basis = torch.linalg.qr(start.T).Q.T.contiguous()
    image = torch.stack([_finite(matvec(row), count) for count, row in enumerate(basis, 1)])
    iterations, wanted = min(iterations, n), min(wanted, iterations, n)
    while True:
        products = len(basis)
        inner = basis.double() @ image.double().T
        values, mixture = torch.linalg.eigh((inner + inner.T) / 2)
        values, mixture = values.flip(0)[:wanted], mixture.flip(1)[:, :wanted].to(basis)
        vectors = mixture.T @ basis
        left = mixture.T @ image - values.to(basis)[:, None] * vectors
        residuals = values.new_tensor([length(row) for row in left])
        near = residuals <= tol * values.abs()
        enough = tol > 0 and products >= max(least, wanted) and bool(near.all())
        done = products > len(start) and not bool(residuals.any())  # nothing is left to go on from
        if enough or done or products >= iterations:
            return Continued(values, vectors, residuals, products)
        worst = left[(residuals / values.abs().clamp_min(1e-300)).argmax()]
        direction = worst / max(length(worst), torch.finfo(worst.dtype).tiny)
        if products == len(start):
            direction = direction + noise
        for _ in range(2):  # twice is enough (Kahan)
            direction = direction - basis.T @ (basis @ direction)
        direction = direction / torch.linalg.vector_norm(direction)
        basis = torch.cat([basis, direction[None]])
        image = torch.cat([image, _finite(matvec(direction), products + 1)[None]])


def _finite(product: Tensor, count: int) -> Tensor:
    if not bool(product.isfinite().all()):
        raise NotFiniteError(f"matvec must return finite vectors, got a non-finite one at product {count}")
    return product
