"""Gradient starvation (arXiv 2011.09468): which features of the tangent kernel a classifier answers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg._core.checks import check_count, check_kind
from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._batches import take
from thalweg.probe._example_batch import count
from thalweg.probe._margins import check_targets, one_by_one, together, vectorised
from thalweg.probe._normalising import mixing_examples, normalising_as_in_training
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["GradientStarvation", "gradient_starvation"]


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

    Where batch normalisation is in training mode it normalises by these examples, and :math:`\Phi` counts
    what each does to the statistics, as the gradient of training does: one backward pass of all examples for
    each of them. With running statistics, or those of the batch held fixed, other features come out: on
    two classes of digits the two strongest held 0.95 of what all margins share where it was 0.05 to 0.5.
    Everything else is in evaluation mode.

    Readings at different steps have different features; follow one of them by ``features[:, j] @ margins``.
    What to expect at the end of training is :func:`thalweg.probe.starvation_coefficients`.

    Args:
        model: gives one logit an example or one a class, classes last, as a tensor, as ``.logits`` or first
            in a tuple; its flags, statistics and ``.grad`` stay as they are. Behind DDP or
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
    check_kind("targets", targets, Tensor, "a tensor")
    if not targets.dim() or not targets.numel():
        raise ValueError(f"targets must hold at least one example, got shape {tuple(targets.shape)}")
    if (examples := count(inputs, "inputs")) != len(targets):
        raise ValueError(f"targets must be as many as inputs, got {len(targets)} for {examples} inputs")
    counts = targets != ignore_index
    norms, mixed = normalising_as_in_training(model), mixing_examples(model)
    if not bool(counts.any()):
        raise ValueError(f"targets must hold one that counts, got only ignore_index={ignore_index}")
    found, rows = [], []
    # Fused attention has no batching rule for its gradient.
    with torch.inference_mode(False), quiet(model), sdpa_kernel(SDPBackend.MATH):
        for norm in norms:
            norm.training = True
        targets = targets.where(counts, 0)
        first = inputs if mixed else take(inputs, slice(0, 1), len(targets))
        check_targets(call(model, first), targets, counts)
        gradients_of = one_by_one if chunk == 1 else vectorised
        if mixed:
            some, gradients = together(model, params, inputs, targets, counts, chunk)
            found, rows = [some], [gradients]
            counts = counts[counts]
        for start in range(0, 0 if mixed else len(targets), chunk):
            part = slice(start, start + chunk)
            given = model, params, take(inputs, part, len(targets)), targets[part]
            try:
                some, gradients = gradients_of(*given)
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                # Control flow that depends on data, or an operation without a rule.
                if gradients_of is one_by_one:
                    raise
                gradients_of = one_by_one
                some, gradients = gradients_of(*given)
            found.append(some)
            rows.append(gradients)
    keep = counts.flatten()
    margins = torch.cat(found)[keep].double()
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
