"""Wasserstein regularisation (arXiv 2406.06811, version 1): weights keep their first distribution."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_not_negative
from thalweg.nn._penalized import Piece, pieces

__all__ = ["WassersteinPenalty", "wasserstein_regularization"]


class WassersteinPenalty(nn.Module):
    """What :func:`wasserstein_regularization` gives: call it once a step and add the result to the loss.

    It holds a sorted copy of every parameter, in float32 at least, as buffers.
    """

    def __init__(self, model: nn.Module, coefficient: float, skip: Collection[str]):
        super().__init__()
        self.coefficient = check_not_negative("coefficient", coefficient)
        self._pieces: list[Piece] = pieces(model, skip)
        if not self._pieces:
            raise ValueError(f"model must have layers with parameters, got {model}")
        for index, piece in enumerate(self._pieces):
            self.register_buffer(f"first{index}", _ordered(piece).detach().clone())

    def forward(self) -> Tensor:
        """The penalty: a scalar."""
        distances = []
        for index, piece in enumerate(self._pieces):
            now, first = _ordered(piece), getattr(self, f"first{index}")
            if first.device != now.device:  # the model has been moved alone
                setattr(self, f"first{index}", first := first.to(now.device))
            distances.append((now - first).square().mean())
        return self.coefficient * torch.stack(distances).sum()

    def extra_repr(self) -> str:
        return f"{len(self._pieces)} tensors, coefficient={self.coefficient:g}"


def _ordered(piece: Piece) -> Tensor:
    values = piece.read()
    return values.to(torch.promote_types(values.dtype, torch.float32)).flatten().sort().values


def wasserstein_regularization(
    model: nn.Module, coefficient: float = 1e-3, *, skip: Collection[str] = ()
) -> WassersteinPenalty:
    r"""A penalty towards the *distribution* of each first weight tensor (arXiv 2406.06811, version 1).

    .. math:: \lambda \sum_l \frac{1}{n_l} \sum_i \left( \theta_{l,(i)} - \theta^0_{l,(i)} \right)^2

    the squared Wasserstein-2 distance between the values now and at the call, both sorted. A weight may go
    anywhere as long as others take its place, which a pull towards the first weights would not allow.

    Args:
        model: as in :func:`spectral_regularization`; its parameters now are the first ones.
        coefficient: :math:`\lambda`, at least 0.
        skip: names of modules to leave out, with ``*`` and ``?``.

    Raises:
        ValueError: as there.
    """
    return WassersteinPenalty(model, coefficient, skip)
