"""A model between two others, and its activations put right again (arXiv 2209.04836, 2402.05966)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from thalweg._core.checks import check_choice, check_number
from thalweg._core.precision import without_autocast
from thalweg.surgery._channel_statistics import (
    HOWS,
    Channels,
    correct,
    layers_to_correct,
    measure,
    refresh_norms,
)
from thalweg.surgery._edit import bare, copied
from thalweg.surgery._same_shape import pair

__all__ = ["LayerStatistics", "MergeReport", "interpolate", "match_statistics"]


@dataclass(frozen=True)
class LayerStatistics:
    """Activations of a layer before its nonlinearity, over the batches.

    Attributes:
        before, after: variance of a channel over the goal's, the median over the channels: without any
            correction, and with all of them. Below 1 the activations have collapsed.
        quiet: channels that were left alone, since they hardly vary.
    """

    before: float
    after: float
    quiet: int


@dataclass(frozen=True)
class MergeReport:
    """What was merged and corrected.

    Attributes:
        layers: corrected layer to its statistics, in the order in which they run.
        norms: batch normalisations whose running statistics were gathered anew.
        distance: Euclidean distance between the two models over all weights.
    """

    layers: dict[str, LayerStatistics]
    norms: tuple[str, ...]
    distance: float

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers corrected, {len(self.norms)} batch norms gathered anew"]
        for name, one in self.layers.items():
            lines.append(f"  {name}: variance over the goal's {one.before:.3g} -> {one.after:.3g}")
        return "\n".join(lines)


@without_autocast()
def interpolate(
    start: nn.Module,
    end: nn.Module,
    at: float = 0.5,
    *,
    renormalise: str | None = None,
    batches: Iterable[Any] | None = None,
    layers: Iterable[str] | None = None,
) -> tuple[nn.Module, MergeReport]:
    r"""The model at :math:`(1-t)\,\theta_\mathrm{start} + t\,\theta_\mathrm{end}`, put right on data.

    Averages of networks fail less for where their weights are than for their activations, whose variance
    shrinks from layer to layer (arXiv 2402.05966). With ``renormalise`` each layer's outputs get, channel by
    channel, the mean and standard deviation between those of the two models: ``"repair"`` both, ``"rescale"``
    the scale alone, ``"reshift"`` the mean alone. Layers are corrected in the order in which they run, each
    measured behind the corrections before it, and the correction is folded into weight and bias.

    Running statistics of batch normalisation belong to one set of weights; they are gathered anew. Align the
    models first: see :func:`align`.

    Args:
        start, end: two models with the same weights by name and shape; the copy is one of ``start``, in whose
            floating-point types ``end`` is read.
        at: t, in [0, 1].
        renormalise: ``"repair"``, ``"rescale"``, ``"reshift"`` or None.
        batches: training data (tensors, tuples or lists of positional tensors, mappings of keyword
            arguments), readable several times: once for each layer and model. Needed to renormalise, and
            where there is batch normalisation; there, ``()`` interpolates the stored statistics.
        layers: names of linear and convolutional layers (transposed ones, too) to correct; by default all but
            the last one, and but those that a batch normalisation with running statistics follows.

    Raises:
        ValueError: the models do not fit, ``batches`` is missing or empty, or a layer cannot be corrected
            (shared, tied, run twice); it is named.
    """
    at = check_number("at", at, 0, 1)
    if renormalise is not None:
        check_choice("renormalise", renormalise, HOWS)
    new, other = pair(start, end, ("start", "end"))
    data = _checked(new, renormalise, batches)
    apart = _mix(new, other, at)
    norms = refresh_norms(new, data) if data else ()
    found: dict[str, LayerStatistics] = {}
    if renormalise is not None:
        goals = [(bare(start), 1 - at), (other, at)]
        found = _renormalise(new, goals, renormalise, data, layers)
    return new, MergeReport(found, norms, apart)


@without_autocast()
def match_statistics(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Any],
    *,
    how: str = "rescale",
    layers: Iterable[str] | None = None,
) -> tuple[nn.Module, MergeReport]:
    """A copy of ``model``, such as a pruned one, whose activations have ``reference``'s statistics again.

    What a merged network loses, a heavily pruned one loses too, and the same correction helps
    (arXiv 2402.05966); see :func:`interpolate`. Running statistics of batch normalisation are gathered anew.

    Args:
        model: to be corrected; untouched itself. Pruned weights stay zero.
        reference: has the same weights by name and shape.
        batches: training data, some hundred examples, readable several times.
        how: ``"repair"``, ``"rescale"`` or ``"reshift"``.
        layers: as in :func:`interpolate`.

    Raises:
        ValueError: as :func:`interpolate`.
    """
    check_choice("how", how, HOWS)
    new, other = pair(model, reference)
    data = _checked(new, how, batches)
    norms = refresh_norms(new, data)
    found = _renormalise(new, [(other, 1.0)], how, data, layers)
    return new, MergeReport(found, norms, _mix(copied(new), other, 0.0))


def _checked(model: nn.Module, how: str | None, batches: Iterable[Any] | None) -> list[Any]:
    if isinstance(batches, Tensor | Mapping | str):
        raise ValueError(f"batches must be a list or loader of batches, got {type(batches).__name__}")
    found = list(batches or ())
    if how is not None and not found:
        raise ValueError("batches must hold data to renormalise on, got none")
    stored = any(isinstance(m, _NormBase) and m.running_mean is not None for m in model.modules())
    if stored and batches is None:
        raise ValueError(
            "batches must be given, since the model keeps normalisation statistics that hold for one set of "
            "weights only; () interpolates the stored ones; got None"
        )
    return found


@torch.no_grad()
def _mix(new: nn.Module, other: nn.Module, at: float) -> float:
    """Move ``new`` towards ``other``; the distance between them before."""
    theirs = dict(other.named_parameters()) | dict(other.named_buffers())
    square = 0.0
    for name, own in (dict(new.named_parameters()) | dict(new.named_buffers())).items():
        if not own.is_floating_point() or name not in theirs:
            continue
        if theirs[name].shape != own.shape:
            raise ValueError(
                f"end must have the buffer {name!r} of shape {tuple(own.shape)} like start, "
                f"got {tuple(theirs[name].shape)}"
            )
        end = theirs[name].to(own.device).double()
        if isinstance(own, nn.Parameter):
            square += (end - own.double()).square().sum().item()
        if at:
            mixed = ((1 - at) * own.double() + at * end).to(own.dtype)
            # What both have stays: a mask of infinities, of which none would be NaN.
            own.copy_(torch.where(own == end, own, mixed))
    return square**0.5


def _renormalise(
    new: nn.Module,
    goals: list[tuple[nn.Module, float]],
    how: str,
    data: list[Any],
    layers: Iterable[str] | None,
) -> dict[str, LayerStatistics]:
    names = layers_to_correct(new, data[0], layers)
    if not names:
        raise ValueError(
            f"layers must name a layer to correct, got none: {type(new).__name__} has no linear or "
            "convolutional layer before its last that no batch normalisation follows"
        )
    parts = [(measure(one, _named(one, names), data), share) for one, share in goals if share]
    wanted = {name: _between([(found[name], share) for found, share in parts]) for name in names}
    plain = measure(new, _named(new, names), data)
    quiet = {}
    for name in names:
        layer = _named(new, [name])
        quiet[name] = correct(layer[name], measure(new, layer, data)[name], wanted[name], how)
    fixed = measure(new, _named(new, names), data)
    return {
        name: LayerStatistics(
            _ratio(plain[name], wanted[name]), _ratio(fixed[name], wanted[name]), quiet[name]
        )
        for name in names
    }


def _named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def _between(parts: list[tuple[Channels, float]]) -> Channels:
    """Means and standard deviations between those of several models."""
    mean = sum(share * one.mean for one, share in parts)
    spread = sum(share * one.spread for one, share in parts)
    return Channels(torch.as_tensor(mean), torch.as_tensor(spread).square())


def _ratio(own: Channels, goal: Channels) -> float:
    return (own.variance / goal.variance.clamp(min=torch.finfo(torch.float64).tiny)).median().item()
