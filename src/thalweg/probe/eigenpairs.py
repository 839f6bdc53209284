"""Top eigenpairs of any curvature operator: Lanczos, continued from an earlier reading while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from thalweg._core.checks import check_count
from thalweg._core.factored import Factored, sound
from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._continued import Continued, continued
from thalweg.probe._named import NamedParams
from thalweg.probe._several import several
from thalweg.probe.cost import costs
from thalweg.probe.eigenvalues import lanczos, length
from thalweg.probe.operator import CurvatureOperator, check_operator, flatten, split
from thalweg.probe.parameter_shares import layer_shares

__all__ = ["Sharpness", "preconditioned", "top_eigenpairs"]

# Share of noise in a warm start: a start that is exactly an eigenvector would never see another overtake it.
NOISE = 0.05
# Products before a small residual is believed, for the same reason; and all that a warm start needs for one.
LEAST = 4
COLD = 20
# So many times the products of one eigenvalue may be spent where several have copies, if no number is given.
COPIES = 4


@dataclass(frozen=True)
class Sharpness:
    """The largest algebraic eigenvalues of a curvature matrix, in units of loss over parameter squared.

    Attributes:
        top: the largest, signed: a larger negative eigenvalue does not hide it.
        eigenvalues: the ``top=`` largest, in falling order.
        vectors: their unit vectors, each flat of shape (n,), in the order of ``params``; the next call's
            ``warm_start``. Of the preconditioned matrix, if there was a preconditioner.
        sizes: how many entries of a vector belong to each parameter: its own number, but behind a
            preconditioner within a subspace that of the subspace.
        hvps: products with the matrix that were spent.
        residual: length of ``H v - top v``: some eigenvalue lies within this distance of ``top``.
    """

    top: float
    eigenvalues: tuple[float, ...]
    vectors: list[Tensor]
    hvps: int
    residual: float
    sizes: tuple[int, ...] = ()

    def shares(self, model_or_named_params: NamedParams) -> list[dict[str, float]]:
        """Which parameters each eigenvector lives in: their shares of its squared length.

        Args:
            model_or_named_params: as for :func:`layer_shares`, in the order of ``params``.
        """
        sizes = self.sizes or None
        return [layer_shares(vector, model_or_named_params, sizes) for vector in self.vectors]


def drawn(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """A standard normal vector on the device and of the type of ``like``."""
    return torch.randn(n, generator=generator, device=generator.device).to(like)


def private_generator(generator: torch.Generator | None) -> torch.Generator:
    """The one given, or a fresh one with seed 0: readings repeat, and the ranks of a job draw the same."""
    return generator or torch.Generator().manual_seed(0)


def given(warm: Sequence[Tensor] | Tensor | None) -> bool:
    """Whether there is a start; rows of a matrix are one too."""
    return warm is not None and len(warm) > 0


def most_products(top: int, iterations: int | None, warm: Sequence[Tensor] | None, cold: int = COLD) -> int:
    """``iterations``, by default what an eigenvalue needs.

    Raises:
        ValueError: it is below ``top``.
    """
    check_count("top", top)
    if iterations is not None:
        return check_count("iterations", iterations, top)
    return max(LEAST, top + 3) if given(warm) else max(cold, top + 10)


def _checked(operator: CurvatureOperator, warm: Sequence[Tensor]) -> Tensor:
    """As rows, in the operator's type."""
    for index, vector in enumerate(warm):
        if vector.shape != (operator.n,):
            raise ValueError(
                f"warm_start[{index}] must have shape ({operator.n},), got {tuple(vector.shape)}"
            )
        if not bool(vector.isfinite().all()) or not bool(vector.any()):
            raise ValueError(f"warm_start[{index}] must be finite and not zero")
    return torch.stack([vector.detach().to(operator.like) for vector in warm])


@costs(0, 0, memory="one more vector")
def preconditioned(
    operator: CurvatureOperator, preconditioner: Sequence[Tensor | Factored | None]
) -> CurvatureOperator:
    r""":math:`F^\top A F` for :math:`P = F F^\top`: its eigenvalues other than 0 are those of :math:`P A`.

    Of a diagonal :math:`P` this is :math:`P^{1/2} A P^{1/2}`. Of one within a subspace (GaLore's) its vectors
    have as many entries as the subspace, and so has the operator.

    Args:
        operator: :math:`A`.
        preconditioner: :math:`P`, one non-negative tensor or :class:`Factored` shaped like each parameter,
            None for ones; such as :func:`preconditioner_of` gives.

    Raises:
        ValueError: the number of tensors or a shape differs, or an entry is negative or not finite.
    """
    diagonals = list(preconditioner)
    if len(diagonals) != len(operator.shapes):
        raise ValueError(f"preconditioner must hold {len(operator.shapes)} tensors, got {len(diagonals)}")
    filled: list[Tensor | Factored] = []
    for index, (diagonal, shape) in enumerate(zip(diagonals, operator.shapes, strict=True)):
        diagonal = operator.like.new_ones(shape) if diagonal is None else diagonal
        if diagonal.shape != shape:
            raise ValueError(
                f"preconditioner[{index}] must have shape {tuple(shape)}, got {tuple(diagonal.shape)}"
            )
        if not (sound(diagonal) if isinstance(diagonal, Tensor) else diagonal.finite()):
            negative = isinstance(diagonal, Tensor) and bool((diagonal < 0).any())
            kind = ValueError if negative else NotFiniteError
            raise kind(f"preconditioner[{index}] must be finite and not negative")
        filled.append(diagonal)
    if any(isinstance(one, Factored) for one in filled):
        return _by_factors(operator, filled)
    root = flatten(cast(list[Tensor], filled), operator.like).sqrt()
    return operator._replace(matvec=lambda vector: root * operator.matvec(root * vector))


def _by_factors(operator: CurvatureOperator, parts: Sequence[Tensor | Factored]) -> CurvatureOperator:
    """With vectors of as many entries as the factors have columns."""
    like = operator.like
    factors = [part.to(like).sqrt() if isinstance(part, Tensor) else part for part in parts]
    shapes = tuple(part.shape if isinstance(part, Tensor) else torch.Size([part.size]) for part in parts)

    def matvec(vector: Tensor) -> Tensor:
        pairs = zip(factors, split(vector, shapes), strict=True)
        raised = [by * x if isinstance(by, Tensor) else by.factor(x) for by, x in pairs]
        product = split(operator.matvec(flatten(raised, like)), operator.shapes)
        back = [
            by * y if isinstance(by, Tensor) else by.transposed(y)
            for by, y in zip(factors, product, strict=True)
        ]
        return flatten(back, like)

    return CurvatureOperator(matvec, sum(shape.numel() for shape in shapes), like, shapes)


@costs(0, 0, hvps=20, memory="as many parameter copies as iterations")
def top_eigenpairs(
    operator: CurvatureOperator,
    *,
    top: int = 1,
    iterations: int | None = None,
    tol: float = 1e-2,
    warm_start: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """Largest eigenvalues, and their vectors, by Lanczos iteration with full re-orthogonalisation.

    Operators come from :func:`hvp_operator` and :func:`ggn_operator`, and can be wrapped by
    :func:`preconditioned` and :func:`averaged_over_ranks`. A cold start takes 10 to 20 products for the first
    eigenvalue, a few for each further one, and for several 4 to 8 more, by which copies of repeated
    eigenvalues are found; each copy takes about as many as a first one. While training, pass the last
    reading's ``vectors`` as ``warm_start``: it then takes 4 products, or ``top + 3`` for more than one
    eigenvalue; see :func:`sharpness` for how close that comes. Ask for ``top=2`` or more where eigenvalues
    may overtake each other.

    Args:
        operator: n x n.
        top: how many eigenvalues.
        iterations: most products to spend, at least ``top``; by default the larger of 20 and ``top + 10`` for
            one eigenvalue, twice that for several that differ, four times for copies of them, and after a
            warm start the larger of 4 and ``top + 3``.
        tol: largest residual over eigenvalue at which to stop; 0 spends all iterations. The values are then
            mostly far closer than that.
        warm_start: flat vectors of shape (n,), such as ``Sharpness.vectors``.
        generator: draws the start; by default a private one with seed 0, so that readings repeat.

    Raises:
        ValueError: a count or shape is out of range, or a product is not finite.
    """
    check_operator(operator)
    most = most_products(top, iterations, warm_start)
    if top > operator.n:
        raise ValueError(f"top must be at most the number of parameters ({operator.n}), got {top}")
    start = drawn(operator.n, operator.like, private_generator(generator))
    if warm_start is not None and given(warm_start):
        noise, warm = NOISE * start / torch.linalg.vector_norm(start), _checked(operator, warm_start)
        if top > 1:
            more = continued(
                operator.matvec,
                warm[: min(most, operator.n)],
                noise,
                most,
                tol,
                wanted=top,
                least=max(LEAST, top + 1),
            )
            return _read(more, operator)
        mean = warm.sum(0)
        start = mean / max(length(mean), torch.finfo(mean.dtype).tiny) + noise
    if top > 1 and tol > 0:
        limit = iterations or COPIES * most
        return _read(several(operator.matvec, start, most, tol, wanted=top, limit=limit), operator)
    found = lanczos(operator.matvec, start, most, tol, wanted=top, least=LEAST)
    pairs = Continued(found.eigenvalues[:top], found.vectors, found.residuals[:top], found.products)
    return _read(pairs, operator)


def _read(pairs: Continued, operator: CurvatureOperator) -> Sharpness:
    values = tuple(pairs.values.tolist())
    sizes = tuple(shape.numel() for shape in operator.shapes)
    return Sharpness(values[0], values, list(pairs.vectors), pairs.products, pairs.residuals[0].item(), sizes)
