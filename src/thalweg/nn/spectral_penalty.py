"""Spectral regularization (arXiv 2406.06811): the largest singular value of each layer is kept near one."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from thalweg._core.checks import check_count, check_not_negative
from thalweg.nn._full_precision import full_precision
from thalweg.nn._penalized import Piece, pieces

__all__ = ["SpectralPenalty", "spectral_regularization"]


class SpectralPenalty(nn.Module):
    """What :func:`spectral_regularization` gives: call it once a step and add the result to the loss.

    It holds one vector for each side of a matrix, in float32 at least, as buffers: they follow the model when
    it is moved, and are saved; the model's weights are not.
    """

    def __init__(
        self, model: nn.Module, coefficient: float, exponent: int, warmup: int, skip: Collection[str]
    ):
        super().__init__()
        self.coefficient = check_not_negative("coefficient", coefficient)
        self.exponent = check_count("exponent", exponent)
        check_count("warmup", warmup)
        self._pieces: list[Piece] = pieces(model, skip)
        self._matrices = [piece for piece in self._pieces if piece.kind == "matrix"]
        if not self._matrices:
            raise ValueError(f"model must have a linear, convolution or recurrent layer, got {model}")
        source = torch.Generator().manual_seed(0)
        for index, piece in enumerate(self._matrices):
            matrix = _matrix(piece)
            rows = torch.randn(matrix.shape[0], generator=source).to(matrix)
            columns = torch.randn(matrix.shape[1], generator=source).to(matrix)
            self.register_buffer(f"left{index}", normalize(rows, dim=0))
            self.register_buffer(f"right{index}", normalize(columns, dim=0))
        for _ in range(warmup):
            self._turn()

    @torch.no_grad()
    def _turn(self) -> None:
        """One power iteration."""
        for index, piece in enumerate(self._matrices):
            matrix = _matrix(piece)
            left, right = self._vectors(index, matrix)
            with full_precision(matrix):
                right.copy_(_direction(matrix.mT @ left, right))
                left.copy_(_direction(matrix @ right, left))

    def _vectors(self, index: int, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of a matrix, brought to where it is now: the model may have been moved alone."""
        for name in (f"left{index}", f"right{index}"):
            vector: Tensor = getattr(self, name)
            if (vector.device, vector.dtype) != (matrix.device, matrix.dtype):
                setattr(self, name, vector.to(matrix))
        return getattr(self, f"left{index}"), getattr(self, f"right{index}")

    def norms(self) -> dict[str, Tensor]:
        """The estimate of each matrix's largest singular value, 0-d, by name; never above the true one."""
        found = {}
        for index, piece in enumerate(self._matrices):
            # Copies, since the backward pass reads them when the next iteration may have changed them.
            matrix = _matrix(piece)
            left, right = (vector.clone() for vector in self._vectors(index, matrix))
            with full_precision(matrix):
                found[piece.name] = left @ matrix @ right
        return found

    def forward(self) -> Tensor:
        """One power iteration, then the penalty: a scalar."""
        self._turn()
        largest = list(self.norms().values())
        silent = []
        for piece in self._pieces:
            if piece.kind == "gain":
                largest.append(_wide(piece.read()).abs().amax())
            elif piece.kind == "bias":
                silent.append(_wide(piece.read()).square().sum())
        total = (torch.stack(largest) ** self.exponent - 1).square().sum()
        if silent:
            total = total + (torch.stack(silent) ** self.exponent).sum()
        return self.coefficient * total

    def extra_repr(self) -> str:
        return f"{len(self._matrices)} matrices, coefficient={self.coefficient:g}, exponent={self.exponent}"


def _direction(vector: Tensor, before: Tensor) -> Tensor:
    """Where a vector points; where it is zero, as with a weight that starts there, the direction before."""
    length = torch.linalg.vector_norm(vector)
    return torch.where(length > 0, vector / length, before)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _matrix(piece: Piece) -> Tensor:
    return _wide(piece.read()).flatten(1)


def spectral_regularization(
    model: nn.Module,
    coefficient: float = 1e-3,
    *,
    exponent: int = 2,
    warmup: int = 20,
    skip: Collection[str] = (),
) -> SpectralPenalty:
    r"""A penalty that keeps layers able to learn new targets (arXiv 2406.06811).

    .. math:: \lambda \sum_l \left[ (\sigma_1(W_l)^k - 1)^2 + \lVert b_l \rVert^{2k} \right]

    .. code-block:: python

        penalty = nn.spectral_regularization(model, 1e-3)
        loss = loss_fn(model(x), y) + penalty()

    :math:`\sigma_1` is estimated by one power iteration a call, from where the last one ended, with the
    gradient :math:`u v^\top` of the estimate. A convolution's weight is seen as (out, the rest); the norm
    of its operator is another. The gain of a normalisation counts as a diagonal matrix, its offset as a bias.
    Projections that are stored as one tensor (attention, gates) are taken apart. Embeddings are left out,
    those of positions and class tokens with a batch dimension of one, too.

    Args:
        model: layers that are not understood are refused.
        coefficient: :math:`\lambda`, at least 0; useful from 1e-5 to 1e-2.
        exponent: :math:`k`, at least 1.
        warmup: power iterations at the start; an estimate too small pushes weights up.
        skip: names of modules to leave out, with ``*`` and ``?``.

    Raises:
        ValueError: an argument is out of range, or a module has parameters that are not understood or no
            numbers (it is named).
    """
    return SpectralPenalty(model, coefficient, exponent, warmup, skip)
