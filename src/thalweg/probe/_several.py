"""Several eigenpairs from a cold start: Lanczos from one random vector, and from more, to see what it cannot.

A Krylov space holds one vector of each eigenspace, however often an eigenvalue is repeated: the mean squared
error of a linear layer has every eigenvalue as often as there are outputs. Further starts show the others,
and all products, of whichever start, count in one Rayleigh-Ritz.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from thalweg._core.not_finite import NotFiniteError
from thalweg._core.precision import without_autocast
from thalweg.probe._continued import Continued
from thalweg.probe.eigenvalues import length

# Products from a further start before it is believed to hold nothing more, since the first residuals are
# small whatever it holds, and after which it is in any case: copies are seen after 2 to 5.
LEAST, MOST = 4, 16
SEED = 2  # not that of the first start


class Grown:
    """A space that grows by one product at a time, along one of several Krylov sequences.

    Attributes:
        inner: the matrix within the space, shape (k, k), float64.
        member: number of the sequence that each of the k basis vectors belongs to.
        pending: what products have outside of the space, by the basis vector whose product it was.
    """

    def __init__(self, matvec: Callable[[Tensor], Tensor], start: Tensor, room: int):
        self.matvec, self.room = matvec, room
        self._rows = start.new_empty(min(room, start.numel()), start.numel())
        self.inner = np.zeros((0, 0))
        self.member: list[int] = []
        self.pending: dict[int, Tensor] = {}
        self.products = 0

    @property
    def basis(self) -> Tensor:
        return self._rows[: self.products]

    @property
    def full(self) -> bool:
        return self.products == self._rows.shape[1]

    def outside(self, vector: Tensor) -> tuple[Tensor, np.ndarray]:
        """What is orthogonal to the space, and the coordinates of the rest."""
        along = np.zeros(self.products)
        for _ in range(2):  # twice is enough (Kahan)
            part = self.basis @ vector
            vector = vector - self.basis.T @ part
            along = along + part.double().cpu().numpy()
        return vector, along

    def begin(self, start: Tensor) -> None:
        """Along a new sequence."""
        self._take(self.outside(start)[0], max(self.member, default=-1) + 1)

    def go_on(self, sequence: int) -> bool:
        """One product further along a sequence, if it does not end here."""
        ends = [index for index in self.pending if self.member[index] == sequence]
        if ends:
            self._take(self.outside(self.pending.pop(ends[-1]))[0], sequence)
        return bool(ends)

    def grow(self, pairs: np.ndarray, errors: np.ndarray) -> bool:
        """Take in what the worst of these pairs misses most, if that is anything."""
        if self.pending:
            missed = self._left(pairs[:, [errors.argmax()]])[:, 0]
            index = list(self.pending)[int(missed.argmax())]
            self._take(self.outside(self.pending.pop(index))[0], self.member[index])
            return True
        return False

    def _take(self, direction: Tensor, sequence: int) -> None:
        if self.products == len(self._rows):
            more = min(self.room, self._rows.shape[1] - len(self._rows))
            self._rows = torch.cat([self._rows, self._rows.new_empty(more, self._rows.shape[1])])
        direction = direction / max(length(direction), torch.finfo(direction.dtype).tiny)
        self._rows[self.products] = direction
        self.products += 1
        self.member.append(sequence)
        product = self.matvec(direction)
        if product.shape != direction.shape:
            raise ValueError(f"matvec must return shape {tuple(direction.shape)}, got {tuple(product.shape)}")
        for index, rest in self.pending.items():
            self.pending[index] = rest - torch.dot(direction, rest) * direction
        rest, along = self.outside(product)
        beta = length(rest)
        if not np.isfinite(along).all() or not np.isfinite(beta):
            raise NotFiniteError(
                f"matvec must return finite vectors, got a non-finite one at product {self.products}"
            )
        k = self.products
        grown = np.zeros((k, k))
        grown[:-1, :-1] = self.inner
        grown[-1], grown[:, -1] = along, along
        self.inner = grown
        if beta > self.rounding():
            self.pending[k - 1] = rest

    def rounding(self) -> float:
        """Below which a length is nothing but the error of a product."""
        n = self._rows.shape[1]
        return float(torch.finfo(self._rows.dtype).eps * n**0.5 * np.abs(self.inner).max())

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Values, falling, and their vectors as columns of coordinates."""
        values, vectors = np.linalg.eigh(self.inner)
        return values[::-1], vectors[:, ::-1]

    def _left(self, vectors: np.ndarray) -> np.ndarray:
        """For each column, the lengths of its parts along ``pending``: shape (pending, columns)."""
        lengths = np.array([length(rest) for rest in self.pending.values()])
        return lengths[:, None] * np.abs(vectors[list(self.pending)])

    def residuals(self, vectors: np.ndarray) -> np.ndarray:
        """How long the product of each column is outside of the space."""
        if not self.pending:
            return np.zeros(vectors.shape[1])
        rest = torch.stack(list(self.pending.values())).double()
        gram = (rest @ rest.T).cpu().numpy()
        parts = vectors[list(self.pending)]
        return np.sqrt(np.maximum(np.einsum("ik,ij,jk->k", parts, gram, parts), 0))

    def most_of(self, sequence: int, known: np.ndarray, values: np.ndarray) -> float:
        """How large a value along a sequence may be, beside that of the ``known`` pairs."""
        own = np.array(self.member) == sequence
        known = np.pad(known, ((0, self.products - len(known)), (0, 0)))
        beside = self.inner - (known * values) @ known.T
        found, vectors = np.linalg.eigh(beside[np.ix_(own, own)])
        inside = np.zeros((self.products, 1))
        inside[own, 0] = vectors[:, -1]
        error = np.linalg.norm(beside @ inside - found[-1] * inside)
        return float(found[-1] + np.hypot(error, self.residuals(inside)[0]))


@torch.no_grad()
@without_autocast()
def several(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    tol: float,
    *,
    wanted: int,
    limit: int,
) -> Continued:
    """The ``wanted`` largest eigenpairs, repeated ones as often as they are.

    Goes along the first start until the wanted pairs are as sure as ``tol`` asks, or twice ``iterations``
    are spent. Then along a second one, until the largest value there is seen to be below them (mostly 4 to 8
    products), or has brought a new pair: then that is made as sure, and a third is looked at. Where all that
    are wanted are copies of the largest, there is nothing more to look for.

    Args:
        matvec: product of a symmetric matrix with a vector of shape (n,).
        start: shape (n,), random.
        iterations: half of the products for distinct eigenvalues; each copy may take as many.
        tol: largest residual over eigenvalue, above 0.
        wanted: how many.
        limit: most products to spend.

    Raises:
        ValueError: a product is not finite or has the wrong shape.
    """
    source = torch.Generator().manual_seed(SEED)
    space = Grown(matvec, start, iterations)
    space.begin(start)
    looking, brought, empty = 0, 0, False
    known, before, doubt = np.zeros((0, wanted)), np.zeros(wanted), np.zeros(wanted)

    def below() -> bool:
        """Whether what is looked at holds nothing above the least of the pairs that were known."""
        if known.shape[1] < wanted:
            return False
        above = max(tol * abs(before[-1]), space.rounding(), doubt[-1])
        return space.most_of(looking, known, before) <= before[-1] + above

    while True:
        values, vectors = space.ritz()
        values, top = values[:wanted], vectors[:, :wanted]
        residuals = space.residuals(top)
        enough = space.products >= max(LEAST, wanted)
        finest = np.maximum(tol * np.abs(values), space.rounding())
        near = enough and bool((residuals <= finest).all())
        # Every eigenvalue is seen from the first start already: none is above the largest.
        alike = values[0] - values[-1] <= finest[0]
        if space.full or space.products >= limit or (near and alike):
            break
        if looking:
            rose = values - before[: len(values)] > np.maximum(finest, doubt[: len(values)])
            steps, new = space.member.count(looking), bool(rose.any())
            if (steps < LEAST or not (new or steps >= MOST or below())) and space.go_on(looking):
                continue
            # Also a sequence that ends after fewer steps has shown all that it has.
            looking, brought, empty = 0, brought + new, not new
        unsure = not near and space.products < iterations * (2 + brought)
        if unsure and space.grow(top, residuals / np.maximum(np.abs(values), 1e-300)):
            continue
        if empty and enough:
            break
        space.begin(torch.randn(start.numel(), generator=source).to(start))
        looking, known = max(space.member), top
        before, doubt = np.full(wanted, -np.inf), np.zeros(wanted)
        before[: len(values)], doubt[: len(values)] = values, residuals
    found = torch.from_numpy(top.T.copy()).to(start) @ space.basis
    return Continued(torch.from_numpy(values.copy()), found, torch.from_numpy(residuals), space.products)
