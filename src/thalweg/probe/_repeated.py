"""Copies of repeated eigenvalues, which no Lanczos iteration sees: it meets one vector of each eigenspace.

The mean squared error of a linear layer has every eigenvalue as often as there are outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from thalweg._core.precision import without_autocast
from thalweg.probe._continued import Continued
from thalweg.probe.eigenvalues import Lanczos, iterate, orthogonal_to

# Products before the remaining space is believed to hold nothing more, since the first residuals are small
# whatever it holds, and after which it is in any case: copies are seen after 2 to 5.
LEAST, MOST = 4, 16
SEED = 2  # neither the first start's nor that of Lanczos' own further ones


@torch.no_grad()
@without_autocast()
def with_copies(
    matvec: Callable[[Tensor], Tensor], found: Lanczos, iterations: int, tol: float, wanted: int
) -> Continued:
    """``found`` with the copies of its eigenvalues that are among the ``wanted`` largest.

    Iterates from a random start in what is orthogonal to the vectors found, until the largest value there is
    seen to be below them (mostly 4 to 8 products), or those above the least of them are as sure: then again.

    Args:
        matvec, tol, wanted: as for :func:`thalweg.probe.lanczos`.
        found: its answer, whether or not it converged.
        iterations: most products to spend, those of ``found`` among them.
    """
    n = found.vectors.shape[1]
    values, residuals = found.eigenvalues[:wanted].numpy(), found.residuals[:wanted].numpy()
    vectors, products = found.vectors, found.products
    source = torch.Generator().manual_seed(SEED)
    rounding = torch.finfo(vectors.dtype).eps * n**0.5 * np.abs(found.eigenvalues.numpy()).max()
    while products + LEAST <= iterations and len(vectors) < n and len(values) == wanted:
        # Some eigenvalue lies within the residual of the least one found: up to there it is no copy.
        unsure = 0.0 if found.converged else residuals[-1]
        least = values[-1] + max(tol * abs(values[-1]), unsure, rounding)
        start = orthogonal_to(vectors, torch.randn(n, generator=source).to(vectors))
        rest = iterate(
            lambda v, span=vectors: orthogonal_to(span, matvec(v)),  # type: ignore[misc]
            start,
            min(iterations - products, n - len(vectors)),
            partial(_seen, known=values, least=least, unsure=unsure, tol=tol),
            wanted=wanted,
            least=LEAST,
        )
        products += rest.products
        if rest.eigenvalues[0] <= least:
            break
        count = len(rest.vectors)
        order = np.argsort(-np.concatenate([values, rest.eigenvalues[:count]]), kind="stable")[:wanted]
        values = np.concatenate([values, rest.eigenvalues[:count]])[order]
        residuals = np.concatenate([residuals, rest.residuals[:count]])[order]
        vectors = torch.cat([vectors, rest.vectors])[torch.from_numpy(order)]
    return Continued(torch.from_numpy(values.copy()), vectors, torch.from_numpy(residuals.copy()), products)


def _seen(
    ritz: np.ndarray, errors: np.ndarray, *, known: np.ndarray, least: float, unsure: float, tol: float
) -> bool:
    """Whether the values ``ritz`` of the remaining space are told from the ``known`` ones well enough."""
    if ritz[0] <= least:
        return len(ritz) >= MOST or bool(ritz[0] + errors[0] <= least)
    among = ritz >= np.sort(np.concatenate([known, ritz]))[-len(known)]
    return bool((errors[among] <= np.maximum(tol * np.abs(ritz[among]), unsure)).all())
