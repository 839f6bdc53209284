"""Spectral density of a curvature matrix by stochastic Lanczos quadrature (arXiv 1901.10159)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_count, check_positive
from thalweg.probe.cost import costs
from thalweg.probe.eigenpairs import drawn, private_generator
from thalweg.probe.eigenvalues import lanczos
from thalweg.probe.operator import CurvatureOperator, check_operator

__all__ = ["SpectralDensity", "spectral_density"]


@dataclass(frozen=True)
class SpectralDensity:
    """A spectrum as weighted points, one quadrature a start vector.

    Attributes:
        values: points, each of shape (k,), in units of loss over parameter squared, falling; k may differ
            between the quadratures.
        weights: their shares of the spectrum, each of shape (k,) with sum 1.
        n: number of eigenvalues.
        hvps: products spent.
    """

    values: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    n: int
    hvps: int

    def below(self, at: Tensor) -> Tensor:
        """Share of the eigenvalues that are at most each of ``at``, any shape, with the same shape."""
        return self._mean(lambda points: (points <= at.double().unsqueeze(-1)).double())

    def at(self, where: Tensor, width: float) -> Tensor:
        """Density at each of ``where``, every eigenvalue a normal bump of deviation ``width``.

        Raises:
            ValueError: ``width`` is not positive.
        """
        check_positive("width", width)
        scale = 1 / (width * math.sqrt(2 * math.pi))

        def bump(points: Tensor) -> Tensor:
            return scale * torch.exp(-0.5 * ((where.double().unsqueeze(-1) - points) / width) ** 2)

        return self._mean(bump)

    def moment(self, power: int) -> tuple[float, float]:
        """Mean of eigenvalues to a power, and its standard error: ``n`` times the first is the trace."""
        each = torch.stack([(w * v**power).sum() for v, w in zip(self.values, self.weights, strict=True)])
        error = each.std() / len(each) ** 0.5 if len(each) > 1 else each.new_tensor(math.nan)
        return each.mean().item(), error.item()

    def _mean(self, function) -> Tensor:
        each = [function(v) @ w for v, w in zip(self.values, self.weights, strict=True)]
        return torch.stack(each).mean(0)


@torch.no_grad()
@costs(0, 0, hvps=200, memory="as many vectors as iterations")
def spectral_density(
    operator: CurvatureOperator,
    *,
    samples: int = 4,
    iterations: int = 50,
    starts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    r"""How the eigenvalues are spread, from Gauss quadratures along random starts.

    Each start costs ``iterations`` products. A quadrature of k points is exact for all powers up to 2k - 1
    along its start; over starts, shares of the spectrum scatter by about :math:`1/\sqrt{n \cdot samples}`, so
    few starts are enough in high dimension. The outermost points are converged eigenvalues.

    Args:
        operator: symmetric, n x n.
        samples: random starts.
        iterations: of Lanczos a start; at most n are used.
        starts: instead of random ones, shape (samples, n). The unit vectors of any orthonormal basis, with
            ``iterations=n``, give the spectrum exactly.
        generator: draws the starts; by default a private one with seed 0.

    Raises:
        ValueError: a count is below 1, ``starts`` has another width, or a product is not finite.
    """
    check_count("samples", samples)
    check_count("iterations", iterations)
    check_operator(operator)
    if starts is None:
        generator = private_generator(generator)
        each = (drawn(operator.n, operator.like, generator) for _ in range(samples))
    elif starts.dim() != 2 or starts.shape[1] != operator.n:
        raise ValueError(f"starts must have shape (samples, {operator.n}), got {tuple(starts.shape)}")
    else:
        each = (start.detach().to(operator.like) for start in starts)
    found = [lanczos(operator.matvec, start, iterations, 0.0) for start in each]
    return SpectralDensity(
        values=tuple(one.eigenvalues for one in found),
        weights=tuple(one.weights for one in found),
        n=operator.n,
        hvps=sum(one.products for one in found),
    )
