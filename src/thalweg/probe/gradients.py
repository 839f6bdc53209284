"""How large the gradient is, tensor by tensor, and where it is missing or broken."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.probe._named import NamedParams, named
from thalweg.probe.cost import costs

__all__ = ["GradientNorms", "gradient_norm_tensor", "gradient_norms"]


@dataclass(frozen=True)
class GradientNorms:
    """Euclidean norms of the gradients at hand, in units of loss per unit of parameter.

    Attributes:
        per_layer: name of the parameter to its norm; parameters without a gradient are absent.
        total: norm of all of them together; not finite if any entry of any gradient is not.
        missing: parameters that require a gradient and have none.
        nonfinite: parameters whose gradient holds a NaN or an infinity.
    """

    per_layer: dict[str, float]
    total: float
    missing: tuple[str, ...]
    nonfinite: tuple[str, ...]


def _dense(gradient: Tensor) -> Tensor:
    """The stored values of a sparse gradient, which have its norm; any other as it is."""
    gradient = gradient.detach()
    return gradient.coalesce().values() if gradient.is_sparse else gradient


@torch.no_grad()
@costs(0, 0, memory="one number a tensor")
def gradient_norm_tensor(params: Iterable[Tensor]) -> Tensor:
    """Norm of each parameter's ``.grad`` as one tensor on the device, without waiting for the device.

    For use inside a training step: nothing is copied to the host. Sums are kept in float32 at least,
    also for float16 and bfloat16 gradients.

    Args:
        params: tensors; those without a gradient count as zero, so that positions stay those of ``params``.

    Returns:
        Shape (number of params,), float32 (float64 if a gradient is), on the first gradient's device.

    Raises:
        ValueError: ``params`` is empty.
    """
    params = list(params)
    if not params:
        raise ValueError("params must hold at least one tensor, got none")
    found = [(index, _dense(p.grad)) for index, p in enumerate(params) if p.grad is not None]
    if not found:
        return torch.zeros(len(params), device=params[0].device)
    gradients = [gradient for _, gradient in found]
    wide = any(gradient.dtype is torch.float64 for gradient in gradients)
    dtype = torch.float64 if wide else torch.float32
    device = gradients[0].device
    # The fused kernel wants one device and one type a call.
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, gradient in enumerate(gradients):
        kinds.setdefault((gradient.device, gradient.dtype), []).append(position)
    norms: list[Tensor] = [torch.empty(0)] * len(gradients)
    for (_, kind), positions in kinds.items():
        accumulate = torch.promote_types(kind, torch.float32)
        group = [gradients[position] for position in positions]
        for position, norm in zip(positions, torch._foreach_norm(group, 2, dtype=accumulate), strict=True):
            norms[position] = norm
    stacked = torch.stack([norm.to(device=device, dtype=dtype, non_blocking=True) for norm in norms])
    if len(found) == len(params):
        return stacked
    # Built on the host from what the host knows, so that the scatter needs no answer from the device.
    index = torch.tensor([index for index, _ in found]).to(device, non_blocking=True)
    return torch.zeros(len(params), device=device, dtype=dtype).index_copy(0, index, stacked)


@torch.no_grad()
@costs(0, 0, memory="one number a tensor")
def gradient_norms(model_or_named_params: NamedParams) -> GradientNorms:
    """Norm of each ``.grad`` by name, the total, and which gradients are missing or not finite.

    Waits for the device once (again for gradients that look broken). Nothing is changed.

    Args:
        model_or_named_params: a module (behind DDP or ``torch.compile``, that inside), a mapping of names to
            tensors, or (name, tensor) pairs.

    Raises:
        ValueError: there is no parameter, or an entry is not a (name, tensor) pair.
    """
    params = named(model_or_named_params)
    having = {name: p for name, p in params.items() if p.grad is not None}
    missing = tuple(name for name, p in params.items() if p.grad is None and p.requires_grad)
    if not having:
        return GradientNorms({}, 0.0, missing, ())
    norms = dict(zip(having, gradient_norm_tensor(having.values()).tolist(), strict=True))
    nonfinite = []
    for name in [name for name, norm in norms.items() if not math.isfinite(norm)]:
        gradient = _dense(having[name].grad)  # type: ignore[arg-type]
        if bool(gradient.isfinite().all()):
            # Finite entries whose squares overflowed float32.
            norms[name] = torch.linalg.vector_norm(gradient, dtype=torch.float64).item()
        else:
            nonfinite.append(name)
    return GradientNorms(norms, math.hypot(*norms.values()), missing, tuple(nonfinite))
