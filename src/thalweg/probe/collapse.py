"""Softmax collapse (arXiv 2501.04697): correct logits so large that floating point leaves no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._named import NamedParams, named
from thalweg.probe.cost import costs

__all__ = ["SoftmaxCollapse", "softmax_collapse", "weight_gradient_alignment"]


@dataclass(frozen=True)
class SoftmaxCollapse:
    """How much of a batch no longer teaches anything.

    Attributes:
        fraction: share of examples whose softmax denominator rounds to the largest term alone, in [0, 1].
        zero_loss: share of examples whose cross-entropy is exactly zero, in [0, 1].
        examples: how many were counted.
    """

    fraction: float
    zero_loss: float
    examples: int


@torch.no_grad()
@costs(0, 0, memory="two copies of the logits in the working precision")
def softmax_collapse(
    logits: Tensor, targets: Tensor, *, dtype: torch.dtype | None = None, ignore_index: int = -100
) -> SoftmaxCollapse:
    r"""Share of examples whose softmax has collapsed in floating point (arXiv 2501.04697).

    With :math:`z' = z - \max z`, an example has collapsed when the floating-point sum of :math:`\exp z'` is
    exactly 1: every other class was absorbed by rounding. In float32 each single term is lost below
    :math:`2^{-24}`, a margin of 16.6; how far terms add up among themselves first depends on the order of
    summation, so that with 113 classes the change comes at a margin of 20 to 22.

    Args:
        logits: shape (..., classes), of the training batch; -inf masks a class.
        targets: shape (...), class indices.
        dtype: precision in which the loss is computed; by default that of ``logits``.
        ignore_index: target of positions that do not count.

    Raises:
        ValueError: shapes do not fit, there is one class only, a target is no class, no position counts, a
            logit is NaN or +inf, or ``dtype`` is not a floating type.
    """
    if logits.dim() < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must have the shape of logits without its last dimension, got {tuple(targets.shape)} "
            f"for logits {tuple(logits.shape)}"
        )
    if targets.is_floating_point():
        raise ValueError(f"targets must be class numbers, integers, got {targets.dtype}")
    if logits.shape[-1] < 2:
        raise ValueError(f"logits must be of two classes or more, got shape {tuple(logits.shape)}")
    dtype = dtype or logits.dtype
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type, got {dtype}")
    keep = targets.reshape(-1) != ignore_index
    flat, wanted = logits.reshape(-1, logits.shape[-1])[keep], targets.reshape(-1)[keep]
    if not wanted.numel():
        raise ValueError(f"targets must hold a position that counts, got only ignore_index={ignore_index}")
    classes = flat.shape[-1]
    if bool(((wanted < 0) | (wanted >= classes)).any()):
        raise ValueError(
            f"targets must be in [0, {classes}), got {wanted.min().item()} to {wanted.max().item()}"
        )
    flat = flat.to(dtype)
    if not bool((flat < torch.inf).all()):
        raise ValueError(f"logits must be below infinity in {dtype}, got NaN or +inf")
    collapsed = (flat - flat.amax(-1, keepdim=True)).exp().sum(-1) == 1
    losses = torch.nn.functional.cross_entropy(flat, wanted, reduction="none")
    return SoftmaxCollapse(
        fraction=collapsed.double().mean().item(),
        zero_loss=(losses == 0).double().mean().item(),
        examples=wanted.numel(),
    )


@torch.no_grad()
@costs(0, 0, memory="one normalised weight and gradient at a time")
def weight_gradient_alignment(named_params: NamedParams) -> dict[str, float]:
    r"""Cosine of each weight with its descent direction, :math:`\cos(w, -g)` (arXiv 2501.04697).

    Near 1 the step only scales the weight up, which lowers the loss without changing any prediction ("naive
    loss minimisation", the way into collapse).

    Args:
        named_params: a module, a mapping of names to tensors, or (name, tensor) pairs.

    Returns:
        Name to cosine in [-1, 1] for each parameter with a gradient; 0 where weight or gradient is zero.

    Raises:
        ValueError: there is no parameter, no gradient, or one is not finite.
    """
    params = {name: p for name, p in named(named_params).items() if p.grad is not None}
    if not params:
        raise ValueError("named_params must hold a parameter with a gradient, got none")
    cosines = {}
    for name, p in params.items():
        assert p.grad is not None
        weight, gradient = (t.detach().reshape(-1).double() for t in (p, p.grad.to_dense()))
        size = torch.linalg.vector_norm(weight) * torch.linalg.vector_norm(gradient)
        cosine = -torch.dot(weight, gradient) / size if bool(size != 0) else size
        if not bool(cosine.isfinite()):
            raise NotFiniteError(f"weight and gradient of {name!r} must be finite, got NaN or infinity")
        cosines[name] = cosine.clamp(-1, 1).item()
    return cosines
