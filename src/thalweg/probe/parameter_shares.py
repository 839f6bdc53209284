"""Which layers a flat vector over all parameters lives in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.probe._named import NamedParams, named
from thalweg.probe.cost import costs

__all__ = ["layer_shares"]


@torch.no_grad()
@costs(0, 0, memory="none")
def layer_shares(
    vector: Tensor, model_or_named_params: NamedParams, sizes: Sequence[int] | None = None
) -> dict[str, float]:
    """Which parameters a flat vector, such as a top eigenvector, lives in: shares of its squared length.

    Args:
        vector: shape (n,), in the order of the parameters.
        model_or_named_params: a model (behind DDP or ``torch.compile``, that inside), a mapping of names to
            tensors, or (name, tensor) pairs; those that require a gradient count.
        sizes: how many entries of the vector belong to each of them, where those are not its own: behind a
            preconditioner that works in a subspace.

    Raises:
        ValueError: the shape is wrong, or there is no parameter.
    """
    params = {name: p for name, p in named(model_or_named_params).items() if p.requires_grad}
    sizes = [p.numel() for p in params.values()] if sizes is None else list(sizes)
    if len(sizes) != len(params):
        raise ValueError(f"sizes must hold {len(params)} numbers, one a parameter, got {len(sizes)}")
    if vector.shape != (sum(sizes),):
        raise ValueError(f"vector must have shape ({sum(sizes)},), got {tuple(vector.shape)}")
    squares = torch.stack([piece.double().square().sum() for piece in vector.split(sizes)])
    return dict(zip(params, (squares / squares.sum()).tolist(), strict=True))
