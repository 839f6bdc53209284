"""Random directions of which every filter is as long as the model's own filter (arXiv 1712.09913)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from thalweg._core.checks import check_choice
from thalweg.probe._checkpoints import bare
from thalweg.probe.cost import costs

__all__ = ["filter_direction"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
@costs(0, 0, memory="one copy of the weights")
def filter_direction(
    model: nn.Module, *, vectors: str = "zero", generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    r"""A Gaussian direction with :math:`\|d_f\| = \|\theta_f\|` for every filter f (arXiv 1712.09913).

    A filter is what makes one output: a row of a linear layer, an output channel of a convolution, a row of
    an embedding. So a step of 1 is as large as the weights themselves, whatever their scale, and directions
    of different networks compare. Each filter is scaled once; one of zeros gets zeros.

    Args:
        model: its weights set the lengths; only read.
        vectors: what biases and the parameters of normalisation layers (and any other vector or scalar) get:
            ``"zero"``, as in the paper's own pictures, or ``"scale"``: a random direction as long as the
            whole vector.
        generator: by default a private one with seed 0.

    Returns:
        Name to a tensor shaped like the parameter, tied ones once.

    Raises:
        ValueError: another ``vectors``.
    """
    check_choice("vectors", vectors, ("zero", "scale"))
    generator = generator or torch.Generator().manual_seed(0)
    model = bare(model)
    owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    return {name: _direction(p, owner[id(p)], vectors, generator) for name, p in model.named_parameters()}


def _direction(p: Tensor, owner: nn.Module, vectors: str, generator: torch.Generator) -> Tensor:
    wide = torch.promote_types(p.dtype, torch.float32)
    drawn = torch.randn(p.shape, generator=generator, device=generator.device, dtype=wide).to(p.device)
    if p.dim() < 2 or isinstance(owner, NORMS):
        if vectors == "zero":
            return torch.zeros_like(p)
        dims = tuple(range(p.dim()))
    else:
        # A transposed convolution keeps its output channels second, and so does GPT-2's linear layer.
        out = 1 if isinstance(owner, _ConvTransposeNd) or type(owner).__name__ == "Conv1D" else 0
        dims = tuple(dim for dim in range(p.dim()) if dim != out)
    length, own = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (drawn, p.to(wide)))
    return (drawn * own / length.clamp_min(torch.finfo(wide).tiny)).to(p.dtype)
