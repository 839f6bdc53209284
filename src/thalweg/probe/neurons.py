"""Dormant neurons (arXiv 2302.12902): hidden units whose activity is negligible within their layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_not_negative
from thalweg.probe._hidden import overhear_units
from thalweg.probe._units import some, unit_rows
from thalweg.probe._wrapped import bare, of_all_processes, on_every_rank, one_state, over_processes
from thalweg.probe.cost import costs

__all__ = ["DormantNeurons", "dormant_neurons"]


@dataclass(frozen=True)
class DormantNeurons:
    """Which hidden units are nearly silent, and which wholly.

    Attributes:
        fraction: layer to the share of its units whose score is at most ``threshold``, in [0, 1].
        total: dormant units over all units of all layers.
        scores: layer to the score of each unit, shape (units,): mean absolute activation over the layer's
            mean of that, so that scores have mean one (or are all zero in a silent layer).
        threshold: as given.
        dead: layer to the share of its units that are exactly zero on the whole batch, in [0, 1].
        total_dead: dead units over all units of all layers.
    """

    fraction: dict[str, float]
    total: float
    scores: dict[str, Tensor]
    threshold: float
    dead: dict[str, float]
    total_dead: float


def activity_scores(
    model: nn.Module,
    batch: Any,
    layers: Iterable[str] | None,
    inputs_of: Iterable[str] | None,
    unit_dim: int | None,
    group: Any,
) -> dict[str, Tensor]:
    """Layer to mean absolute activation of each unit over that of the layer."""
    return activity(model, batch, layers, inputs_of, unit_dim, group).scores


@dataclass(frozen=True)
class Activity:
    """Scores by layer, how many entries of a unit each is a mean of, and which layers make the output."""

    scores: dict[str, Tensor]
    entries: dict[str, int]
    outputs: set[str]


def activity(
    model: nn.Module,
    batch: Any,
    layers: Iterable[str] | None = None,
    inputs_of: Iterable[str] | None = None,
    unit_dim: int | None = None,
    group: Any = None,
) -> Activity:
    """As :func:`activity_scores`, with what whoever puts batches together has to know."""
    model = bare(model)
    sums: dict[str, Tensor] = {}

    def add(run: str, values: Tensor) -> None:
        rows = unit_rows(run, values, unit_dim)
        # The number of entries rides along, so that one exchange between processes does.
        sums[run] = torch.cat([rows.abs().sum(1), rows.new_tensor([float(rows.shape[1])])])

    def hear() -> set[str]:
        return overhear_units(model, batch, add, layers, inputs_of, sequences=unit_dim is None)

    with one_state(model, group):
        outputs = on_every_rank(hear, group, model)
    scores, entries = {}, {}
    for run, packed in of_all_processes(sums, group).items():
        packed = over_processes(packed, group)
        # An expert to which no example went: nothing is known of its units.
        if not packed[-1] > 0:
            continue
        means = packed[:-1] / packed[-1]
        scores[run], entries[run] = means / (means.mean() + 1e-9), int(packed[-1])
    return Activity(some(scores), entries, outputs)


def share(masks: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    """Share of units that are marked, by layer and over all of them."""
    each = {name: mask.double().mean().item() for name, mask in masks.items()}
    units = sum(mask.numel() for mask in masks.values())
    return each, sum(int(mask.sum()) for mask in masks.values()) / units


@costs(1, 0, memory="one number a unit")
def dormant_neurons(
    model: nn.Module,
    batch: Any,
    *,
    threshold: float = 0.025,
    layers: Iterable[str] | None = None,
    inputs_of: Iterable[str] | None = None,
    unit_dim: int | None = None,
    group: Any = None,
) -> DormantNeurons:
    r"""Score hidden units by their mean absolute activation (arXiv 2302.12902).

    With :math:`a_i` the mean over the batch (and over space or time) of :math:`|h_i|` after the nonlinearity,
    the score is :math:`s_i = a_i / (\mathrm{mean}_k a_k + 10^{-9})`; dormant means
    :math:`s_i \le` ``threshold``, so that units that are exactly silent count at threshold 0.

    A small batch makes rare units look dormant: use 64 examples or more. GELU and SiLU never reach zero:
    compare with the model at initialisation. An activation on the model's output counts like any other,
    unless ``layers`` leaves it out. A layer that got no example, such as an expert, is left out.

    Args:
        model: run once in evaluation mode without gradients; its ``training`` flags are put back. Behind DDP
            or ``torch.compile`` the module itself is run.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        threshold: at least 0; 0.025 to report, up to 0.1 to reset.
        layers: names of modules whose outputs to score. By default every activation module of ``torch.nn``
            or ``transformers``, or with an attribute ``is_activation = True``, and the activation functions
            of torch that the model calls itself, each under the name of the last layer before it, whose units
            it makes (``fc1`` for ``F.relu(fc1(x))``). A layer that runs more than once is reported as
            ``name``, ``name[1]``, ...
        inputs_of: names of modules whose (first) inputs to score, for activations that are neither: a
            transformer's feed-forward units are what its second linear layer reads, gates included.
        unit_dim: dimension of the units. By default that with as many entries as the layer that made them
            has units: the channels of images and of what 1-D convolutions make, wherever they stand, the last
            behind a linear layer. Where that does not tell, 1, and the last of three.
        group: process group whose members each hold a part of the batch and all call this; None for one.

    Raises:
        ValueError: no layer to score (give ``layers`` or ``inputs_of``), an unknown one or one that did not
            run; no example for any; a tensor that is not finite or has no batch and unit dimension.
    """
    threshold = check_not_negative("threshold", threshold)
    scores = activity_scores(model, batch, layers, inputs_of, unit_dim, group)
    fraction, total = share({name: score <= threshold for name, score in scores.items()})
    dead, total_dead = share({name: score == 0 for name, score in scores.items()})
    return DormantNeurons(fraction, total, scores, threshold, dead, total_dead)
