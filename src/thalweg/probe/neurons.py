"""Dormant neurons (arXiv 2302.12902): hidden units whose activity is negligible within their layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_not_negative
from thalweg.probe._quiet import call, listening, modules_named, quiet
from thalweg.probe.cost import costs

__all__ = ["DormantNeurons", "dormant_neurons"]

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.GLU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)


@dataclass(frozen=True)
class DormantNeurons:
    """Which hidden units are nearly silent.

    Attributes:
        fraction: layer to the share of its units whose score is at most ``threshold``, in [0, 1].
        total: dormant units over all units of all layers.
        scores: layer to the score of each unit, shape (units,): mean absolute activation over the layer's
            mean of that, so that scores have mean one (or are all zero in a silent layer).
        threshold: as given.
    """

    fraction: dict[str, float]
    total: float
    scores: dict[str, Tensor]
    threshold: float


def _activity(name: str, output: Tensor, unit_dim: int | None) -> Tensor:
    """Mean absolute activation of each unit, in float32 at least."""
    if unit_dim is None:
        if output.dim() < 2:
            raise ValueError(
                f"layer {name!r} must return (batch, units, ...), got shape {tuple(output.shape)}"
            )
        unit_dim = -1 if output.dim() == 3 else 1
    elif not -output.dim() <= unit_dim < output.dim():
        raise ValueError(f"unit_dim must be a dimension of {tuple(output.shape)} of {name!r}, got {unit_dim}")
    wide = torch.promote_types(output.dtype, torch.float32)
    activity = output.detach().movedim(unit_dim, 0).flatten(1).to(wide).abs().mean(1)
    if not bool(activity.isfinite().all()):
        raise ValueError(f"layer {name!r} must return finite activations, got NaN or infinity")
    return activity


@costs(1, 0, memory="one number a unit")
def dormant_neurons(
    model: nn.Module,
    batch: Any,
    *,
    threshold: float = 0.025,
    layers: Iterable[str] | None = None,
    unit_dim: int | None = None,
) -> DormantNeurons:
    r"""Score hidden units by their mean absolute activation (arXiv 2302.12902).

    With :math:`a_i` the mean over the batch (and over space or time) of :math:`|h_i|` after the nonlinearity,
    the score is :math:`s_i = a_i / (\mathrm{mean}_k a_k + 10^{-9})`; dormant means
    :math:`s_i \le` ``threshold``, so that units that are exactly silent count at threshold 0.

    A small batch makes rare units look dormant: use 64 examples or more. GELU and SiLU never reach zero:
    compare with the model at initialisation. An activation on the model's output counts like any other,
    unless ``layers`` leaves it out.

    Args:
        model: run once in evaluation mode without gradients; its ``training`` flags are put back.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        threshold: at least 0; 0.025 to report, up to 0.1 to reset.
        layers: names of modules whose outputs to score, for activations that are function calls. By default
            every activation module of ``torch.nn``. A module that runs more than once is reported as
            ``name``, ``name[1]``, ``name[2]``, ...
        unit_dim: dimension of the units; by default 1 for (batch, units) and images (batch, channels,
            height, width), the last for (batch, time, units). Give 1 for 1-D convolutions.

    Raises:
        ValueError: no layer to score (give ``layers``), an unknown one or one that did not run; an output
            that is not a finite tensor with a batch and a unit dimension.
    """
    threshold = check_not_negative("threshold", threshold)
    if layers is None:
        chosen: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, ACTIVATIONS)}
        if not chosen:
            raise ValueError(
                "model has no activation modules; name the modules to score with layers=, got layers=None"
            )
    else:
        chosen = modules_named(model, layers)
    runs = dict.fromkeys(chosen, 0)
    scores: dict[str, Tensor] = {}

    def score(name: str, output: Tensor) -> None:
        # Here and not after the run: a later in-place operation may overwrite the output.
        activity = _activity(name, output, unit_dim)
        scores[f"{name}[{runs[name]}]" if runs[name] else name] = activity / (activity.mean() + 1e-9)
        runs[name] += 1

    with quiet(model), listening(chosen, score):
        call(model, batch)
    silent = [name for name, count in runs.items() if not count]
    if not scores or (layers is not None and silent):
        raise ValueError(f"layers must run when the model is called, got {', '.join(silent) or 'none'}")
    dormant = {name: score <= threshold for name, score in scores.items()}
    fraction = {name: mask.double().mean().item() for name, mask in dormant.items()}
    units = sum(mask.numel() for mask in dormant.values())
    total = sum(int(mask.sum()) for mask in dormant.values()) / units
    return DormantNeurons(fraction, total, scores, threshold)
