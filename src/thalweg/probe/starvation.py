"""Gradient starvation (arXiv 2011.09468): which features of the tangent kernel a classifier answers to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg._core.checks import check_count
from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._batches import take
from thalweg.probe._example_batch import changed, count
from thalweg.probe._graphs import check_reachable, dense
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["GradientStarvation", "gradient_starvation"]

Jacobian = tuple[Tensor, dict[str, Tensor]]  # margins and their gradients, one row a target


@dataclass(frozen=True)
class GradientStarvation:
    """Features of a batch, the strongest first, and how far each is used.

    A feature is a left singular vector of the margins' Jacobian: a pattern over the examples. Its sign is
    such that its entries do not add up to less than zero, so that a positive response is of use to most of
    them.

    Attributes:
        strengths: singular values s, shape (k,), falling: how fast a step along the gradient moves the
            feature.
        responses: how far the margins go along each feature, shape (k,), in nats. Starvation: responses of
            weaker features fall, or never rise, because a stronger one already gives every example its
            margin.
        features: shape (k, k), one feature a column.
        layers: parameter to its part in each squared strength, shape (k,); parts add up to ``strengths**2``.
        top_share: squared response of the strongest feature over that of all, in [0, 1].
        margins: of the examples, shape (k,), in nats; their cross-entropy is log(1 + exp(-margin)).
    """

    strengths: Tensor
    responses: Tensor
    features: Tensor
    layers: dict[str, Tensor]
    top_share: float
    margins: Tensor


def margins_of(outputs: Any, targets: Tensor) -> Tensor:
    """Margin of each target, in the shape of ``targets``: cross-entropy is softplus of its negative."""
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return one tensor of logits, got {type(outputs).__name__}")
    if outputs.shape == (*targets.shape, 1):
        outputs = outputs.squeeze(-1)
    if outputs.shape == targets.shape:
        return outputs * targets.to(outputs.dtype)
    if outputs.shape[:-1] != targets.shape or targets.dtype.is_floating_point:
        raise ValueError(
            f"targets must be -1 or 1 for one logit an example or class numbers for several, got "
            f"{targets.dtype}, {tuple(targets.shape)} for outputs of shape {tuple(outputs.shape)}"
        )
    own = outputs.gather(-1, targets.unsqueeze(-1))
    return (own - _without(outputs, targets).logsumexp(-1, keepdim=True)).squeeze(-1)


def _without(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits with the target's own out of the way."""
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    return outputs.masked_fill(classes == targets.unsqueeze(-1), -torch.inf)


def _check(outputs: Any, targets: Tensor, counts: Tensor) -> None:
    """Refuse targets that are none of the model's; inside vmap their values cannot be looked at."""
    margins_of(outputs, targets[:1])
    outputs = logits_of(outputs)
    one_logit = outputs.shape[: targets.dim()] == outputs.shape or outputs.shape[-1] == 1
    wrong = targets.abs() != 1 if one_logit else (targets < 0) | (targets >= outputs.shape[-1])
    if bool((wrong & counts).any()):
        allowed = "-1 or 1" if one_logit else f"in [0, {outputs.shape[-1]})"
        raise ValueError(f"targets must be {allowed}, got {targets[wrong & counts][0].item()}")


def _vectorised(model: nn.Module, params: dict[str, Tensor], inputs: Any, targets: Tensor) -> Jacobian:
    tensors: list[Tensor] = []
    changed(inputs, lambda t: tensors.append(t) if _by_example(t, targets) else None)

    def margins(chosen: dict[str, Tensor], mine: tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, Tensor]:
        given = iter(mine)
        one = changed(inputs, lambda t: next(given)[None] if _by_example(t, targets) else t)
        if isinstance(one, Mapping):
            outputs = functional_call(model, chosen, (), dict(one))
        else:
            outputs = functional_call(model, chosen, tuple(one) if isinstance(one, tuple | list) else (one,))
        found = margins_of(outputs, target[None]).reshape(-1)
        return found, found

    over = vmap(jacrev(margins, has_aux=True), (None, 0, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        gradients, found = over(params, tuple(tensors), targets)
    return found.flatten(), {name: rows.flatten(0, 1) for name, rows in gradients.items()}


def _by_example(t: Tensor, targets: Tensor) -> bool:
    return t.dim() > 0 and len(t) == len(targets)


def _one_by_one(model: nn.Module, params: dict[str, Tensor], inputs: Any, targets: Tensor) -> Jacobian:
    with torch.enable_grad():
        found = margins_of(call(model, inputs), targets).reshape(-1)
        check_reachable("model", found)
        rows = [
            torch.autograd.grad(
                one, list(params.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for one in found
        ]
    columns = [torch.stack([dense(g) for g in column]) for column in zip(*rows, strict=True)]
    return found.detach(), dict(zip(params, columns, strict=True))


@costs(2, 1, memory="one gradient an example")
def gradient_starvation(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    chunk: int = 32,
    ignore_index: int = -100,
) -> GradientStarvation:
    r"""Strength and response of every feature of a batch (arXiv 2011.09468).

    With margins :math:`m_i` (:math:`y_i f_i` for one logit, :math:`z_y - \log\sum_{c\ne y} e^{z_c}` for
    several: in both cases the cross-entropy is :math:`\log(1+e^{-m})`) and their Jacobian
    :math:`\Phi = \partial m/\partial\theta = U S V^\top`, strengths are the diagonal of :math:`S`, features
    the columns of :math:`U`, responses :math:`z = U^\top m`. They come from the kernel :math:`\Phi\Phi^\top`,
    the sum of those of the parameters. A strength below 1e-7 of the largest is rounding, and its feature
    arbitrary.

    Readings at different steps have different features; follow one of them by ``features[:, j] @ margins``.
    What to expect at the end of training is :func:`thalweg.probe.starvation_coefficients`.

    Args:
        model: gives one logit an example or one a class, classes last, as a tensor, as ``.logits`` or first
            in a tuple; run in evaluation mode, its flags and ``.grad`` stay as they are. Behind DDP or
            ``torch.compile`` the module itself is run. Frozen parameters do not count.
        inputs: n examples along the first dimension: a tensor, a tuple of positional or a mapping of keyword
            arguments. 256 are enough; cost and memory grow with n.
        targets: -1 or 1 for one logit; class numbers, shape (n,) or (n, positions), for several.
        chunk: examples whose gradients are taken at a time, by ``torch.func.vmap``; what vmap cannot take,
            such as a recurrent layer, goes one by one, and so does all at 1.
        ignore_index: class number of positions that do not count.

    Raises:
        ValueError: targets do not fit the outputs or are no classes, none counts, a margin is not finite, no
            parameter requires a gradient, or the model checkpoints its activations by reentrant autograd.
    """
    check_count("chunk", chunk)
    model = bare(model)
    params: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    if not targets.dim() or not targets.numel():
        raise ValueError(f"targets must hold at least one example, got shape {tuple(targets.shape)}")
    if (examples := count(inputs, "inputs")) != len(targets):
        raise ValueError(f"targets must be as many as inputs, got {len(targets)} for {examples} inputs")
    counts = targets != ignore_index
    found, rows = [], []
    # Fused attention has no batching rule for its gradient.
    with torch.inference_mode(False), quiet(model), sdpa_kernel(SDPBackend.MATH):
        targets = targets.where(counts, 0)
        _check(call(model, take(inputs, slice(0, 1), len(targets))), targets, counts)
        gradients_of = _one_by_one if chunk == 1 else _vectorised
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            given = model, params, take(inputs, part, len(targets)), targets[part]
            try:
                some, gradients = gradients_of(*given)
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                # Control flow that depends on data, or an operation without a rule.
                if gradients_of is _one_by_one:
                    raise
                gradients_of = _one_by_one
                some, gradients = gradients_of(*given)
            found.append(some)
            rows.append(gradients)
    keep = counts.flatten()
    margins = torch.cat(found)[keep].double()
    if not len(margins):
        raise ValueError(f"targets must hold one that counts, got only ignore_index={ignore_index}")
    if not bool(margins.isfinite().all()):
        raise NotFiniteError("model must give finite margins, got NaN or infinity")
    kernels = {}
    for name in params:
        jacobian = torch.cat([gradients.pop(name).flatten(1) for gradients in rows])[keep].double()
        kernels[name] = jacobian @ jacobian.T
    squares, features = torch.linalg.eigh(torch.stack(list(kernels.values())).sum(0))
    squares, features = squares.flip(0).clamp_min(0), features.flip(1)
    features = features * torch.where(features.sum(0) < 0, -1.0, 1.0)
    responses = features.T @ margins
    return GradientStarvation(
        strengths=squares.sqrt(),
        responses=responses,
        features=features,
        layers={name: ((kernel @ features) * features).sum(0) for name, kernel in kernels.items()},
        top_share=(responses[0].square() / responses.square().sum().clamp_min(1e-300)).item(),
        margins=margins,
    )
