"""Copies of repeated eigenvalues, which no Lanczos iteration sees: it meets one vector of each eigenspace.

The mean squared error of a linear layer has every eigenvalue as often as there are outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from thalweg._core.precision import without_autocast
from thalweg.probe._continued import Continued
from thalweg.probe.eigenvalues import Lanczos, iterate, orthogonal_to

# Products before the largest value of the remaining space is believed: the first residuals are small.
LEAST = 4
SEED = 2  # neither the first start's nor that of Lanczos' own further ones


@torch.no_grad()
@without_autocast()
def with_copies(
    matvec: Callable[[Tensor], Tensor], found: Lanczos, iterations: int, tol: float, wanted: int
) -> Continued:
    """``found`` with the copies of its eigenvalues that are among the ``wanted`` largest.

    Iterates from a random start in what is orthogonal to the vectors found, until the largest value there is
    seen to be below them (mostly 4 products), or those above the least of them have converged: then again.

    Args:
        matvec, tol, wanted: as for :func:`thalweg.probe.lanczos`.
        found: its answer, whose ``wanted`` pairs have converged.
        iterations: most products to spend, those of ``found`` among them.
    """
    n = found.vectors.shape[1]
    values, residuals = found.eigenvalues[:wanted].numpy(), found.residuals[:wanted].numpy()
    vectors, products = found.vectors, found.products
    source = torch.Generator().manual_seed(SEED)
    rounding = torch.finfo(vectors.dtype).eps * n**0.5 * np.abs(found.eigenvalues.numpy()).max()
    while products + LEAST <= iterations and len(vectors) < n and len(values) == wanted:
        least = values[-1] + max(tol * abs(values[-1]), rounding)

        def seen(
            ritz: np.ndarray, errors: np.ndarray, values: np.ndarray = values, least: float = least
        ) -> bool:
            if ritz[0] <= least:
                return bool(ritz[0] + errors[0] <= least)
            among = ritz >= np.sort(np.concatenate([values, ritz]))[-wanted]
            return bool((errors[among] <= tol * np.abs(ritz[among])).all())

        start = orthogonal_to(vectors, torch.randn(n, generator=source).to(vectors))
        rest = iterate(
            lambda v, span=vectors: orthogonal_to(span, matvec(v)),  # type: ignore[misc]
            start,
            min(iterations - products, n - len(vectors)),
            seen,
            wanted=wanted,
            least=LEAST,
        )
        products += rest.products
        if rest.eigenvalues[0] <= least:
            break
        both = np.concatenate([values, rest.eigenvalues.numpy()[: len(rest.vectors)]])
        order = np.argsort(-both, kind="stable")[:wanted]
        values = both[order]
        residuals = np.concatenate([residuals, rest.residuals.numpy()[: len(rest.vectors)]])[order]
        vectors = torch.cat([vectors, rest.vectors])[torch.from_numpy(order)]
    return Continued(torch.from_numpy(values.copy()), vectors, torch.from_numpy(residuals.copy()), products)
