r"""Whether SGD can stay at a minimum: second moments of its linearised steps, and two papers' short tests.

Near a minimum that fits every example, a step moves the distance :math:`d` from it by
:math:`d \mapsto (I - \eta \bar H_S) d` with the mean curvature of the batch. The second moment
:math:`M = \mathbb{E}[d d^\top]` then moves by the linear map

.. math:: T(M) = (I - \eta H) M (I - \eta H)
          + \eta^2 \Big( c_1 \tfrac1n \sum_i H_i M H_i - c_2\, H M H \Big)

in which the way of sampling sets :math:`c_1` and :math:`c_2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_choice, check_count, check_positive
from thalweg.probe.cost import costs
from thalweg.probe.eigenvalues import lanczos
from thalweg.probe.example_curvature import CurvatureGram

__all__ = ["SgdStability", "curvature_coherence", "sgd_stability"]

# Directions in which curvature is below this share of the largest decide nothing and cost time.
FLAT = 1e-9
ITERATIONS, TOL = 300, 1e-6


@dataclass(frozen=True)
class SgdStability:
    r"""Learning rates up to which linearised SGD stays at a minimum, each by another test.

    Attributes:
        lr: the one asked about.
        gradient_descent: :math:`2/\lambda_1(H)`, the limit of the whole batch.
        trace_limit: above it the minimum is unstable, from traces and Frobenius norms (arXiv 2305.17490):
            :math:`2 \operatorname{tr} H / ((1 - c_2) \|H\|_F^2 + c_1 \tfrac1n \sum_i \|H_i\|_F^2)`.
        coherence_limit: above it the minimum is unstable, from the coherence (arXiv 2401.12332):
            :math:`\min(2, \sigma / \sqrt{n/B - 1}) / \lambda_1(H)`. Its theorem is about Bernoulli sampling.
        limit: the exact limit of the map, at most each of the others (of ``coherence_limit`` under Bernoulli
            sampling); where H has more directions than ``rank``, the least upper bound of it that is known.
        coherence: :math:`\sigma`, see :func:`curvature_coherence`.
        sharpness: :math:`\lambda_1(H)`.
        trace: of H.
        loss: mean loss of the examples. All of this is about minima where it is near zero.
    """

    lr: float
    gradient_descent: float
    trace_limit: float
    coherence_limit: float
    limit: float
    coherence: float
    sharpness: float
    trace: float
    loss: float

    @property
    def stable(self) -> bool:
        """Whether the mean square distance from the minimum stays bounded."""
        return self.lr <= self.limit

    @property
    def ratio(self) -> float:
        """Learning rate over its limit; above 1 SGD must leave."""
        return self.lr / self.limit if self.limit < math.inf else 0.0


@costs(0, 0, memory="n x n")
def curvature_coherence(gram: CurvatureGram) -> float:
    r"""How alike the examples' curvatures are (arXiv 2401.12332), at least 1 for one output.

    .. math:: \sigma = \lambda_1(S) / \max_i \lambda_1(H_i), \qquad S_{ij} = \sqrt{\operatorname{tr} H_i H_j}

    For one output it lies between 1, orthogonal gradients of equal norm, and n, all equal. One example with a
    far larger curvature than the others also brings it down. NaN if there is no curvature at all.
    """
    own = gram.blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    largest = torch.linalg.eigvalsh(own)[:, -1].max()
    if largest <= 0:
        return math.nan
    return (torch.linalg.eigvalsh(gram.alike.sqrt())[-1] / largest).item()


def _noise(sampling: str, n: int, batch_size: int) -> tuple[float, float]:
    """c1 and c2."""
    if sampling == "replacement":
        return 1 / batch_size, 1 / batch_size
    if sampling == "bernoulli":
        return 1 / batch_size - 1 / n, 0.0
    share = (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0
    return share, share


@torch.no_grad()
@costs(0, 0, memory="some hundred matrices of rank x rank")
def sgd_stability(
    gram: CurvatureGram, lr: float, batch_size: int, *, sampling: str = "distinct", rank: int = 64
) -> SgdStability:
    r"""Limits of the learning rate for SGD at this minimum, exact and by the two papers' tests.

    The exact limit is :math:`1 / \lambda_{\max}(C^{-1/2} N C^{-1/2})` with :math:`C(M) = HM + MH` and
    :math:`T(M) = M - \eta C(M) + \eta^2 N(M)`, because :math:`T` is self-adjoint and keeps positive matrices
    positive.

    It is one of all parameters together and has no parts. That of a layer trained alone, the others held, is
    asked of the gram of the model with the others frozen: it is never below that of all.

    Args:
        gram: of all examples that SGD draws from; of a sub-sample, what is said is about that sub-sample.
        lr: learning rate of plain SGD on the mean loss.
        batch_size: examples a step, at most n; under Bernoulli sampling their mean number.
        sampling: ``"distinct"`` draws a batch without repeats, anew each step; ``"replacement"`` each example
            on its own; ``"bernoulli"`` takes each example with probability batch_size / n.
        rank: eigendirections of H in which the exact limit is computed; the leading ones of more. What is
            left out could only lower it: hardly where eigenvalues fall fast, and where they do not the trace
            limit is close.

    Raises:
        ValueError: a learning rate, batch size or rank is out of range, or an unknown sampling.
    """
    check_positive("lr", lr)
    check_choice("sampling", sampling, ("bernoulli", "distinct", "replacement"))
    check_count("rank", rank)
    n, k = gram.blocks.shape[:2]
    if check_count("batch_size", batch_size) > n:
        raise ValueError(f"batch_size must be at most the {n} examples, got {batch_size}")
    c1, c2 = _noise(sampling, n, batch_size)
    values, vectors = torch.linalg.eigh(gram.blocks.reshape(n * k, n * k))
    kept = (values > FLAT * values[-1]).nonzero().flatten().flip(0)[:rank]
    values, vectors = values[kept], vectors[:, kept]
    loss = gram.losses.mean().item()
    if not len(kept):
        flat = math.inf
        return SgdStability(lr, flat, flat, flat, flat, math.nan, 0.0, gram.trace, loss)
    curvatures = values / n
    sharpness, sigma = curvatures[0].item(), curvature_coherence(gram)
    own = gram.alike.diagonal().mean().item()
    spread = (1 - c2) * gram.alike.mean().item() + c1 * own
    noise = math.sqrt(n / batch_size - 1)
    by_trace = 2 * gram.trace / spread
    by_coherence = (min(2, sigma / noise) if noise else 2) / sharpness
    # Tests over all directions may know better than the map within the leading ones.
    tests = [by_trace, by_coherence] if sampling == "bernoulli" else [by_trace]
    exact = _exact_limit(curvatures, (vectors * values.sqrt()).view(n, k, -1), c1, c2)
    return SgdStability(
        lr=lr,
        gradient_descent=2 / sharpness,
        trace_limit=by_trace,
        coherence_limit=by_coherence,
        limit=min(exact, *tests),
        coherence=sigma,
        sharpness=sharpness,
        trace=gram.trace,
        loss=loss,
    )


def _exact_limit(curvatures: Tensor, factors: Tensor, c1: float, c2: float) -> float:
    """``factors`` (n, k, r) are the examples' in the eigenbasis of H, whose eigenvalues are given."""
    r = len(curvatures)
    root = (curvatures[:, None] + curvatures[None]).rsqrt()
    both = (1 - c2) * curvatures[:, None] * curvatures[None]

    def matvec(vector: Tensor) -> Tensor:
        moment = vector.view(r, r) * root
        seen = factors @ moment @ factors.mT  # (n, k, k): the second moment as each example sees it
        noise = torch.einsum("nkr,nkl,nls->rs", factors, seen, factors) / len(factors)
        return (root * (both * moment + c1 * noise)).flatten()

    start = torch.eye(r).to(curvatures).flatten()
    found = lanczos(matvec, start, ITERATIONS, TOL)
    return 1 / found.eigenvalues[0].item()
