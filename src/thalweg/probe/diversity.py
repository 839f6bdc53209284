"""Feature diversity: how alike the features of different examples are, and how alike the units of a layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._hidden import overhear_units_of_all
from thalweg.probe._units import some
from thalweg.probe._wrapped import bare, one_state, over_processes
from thalweg.probe.cost import costs
from thalweg.probe.rank import feature_rows

__all__ = ["FeatureDiversity", "feature_diversity"]


@dataclass(frozen=True)
class FeatureDiversity:
    """How alike one layer's features are over one batch; None where there is no pair to average.

    Attributes:
        example_cosine: mean cosine between the features of two different examples, in [-1, 1]. Not centred:
            positive features (ReLU) start well above zero, so compare with the model at initialisation.
        same_class, different_class: the same over pairs of one class, and of two; None without labels.
        unit_correlation: root mean square of the correlation of two different units over the batch, in
            [0, 1]; units that never change are left out.
        constant: share of units that never change.
        rows, columns: examples (times positions for sequences), and features.
    """

    example_cosine: float | None
    same_class: float | None
    different_class: float | None
    unit_correlation: float | None
    constant: float
    rows: int
    columns: int


def _mean_cosine(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """Sum of cosines over ordered pairs of different rows within each class, and the number of pairs."""
    pairs = (counts * (counts - 1)).sum().item()
    return sums.square().sum().item() - counts.sum().item(), pairs


def _cosines(unit: Tensor, labels: Tensor | None, group: Any) -> tuple[float | None, ...]:
    """Mean cosines overall, within and between classes, from one sum of unit vectors a class."""
    given = labels is not None
    classes = torch.zeros(len(unit), dtype=torch.long) if labels is None else labels
    classes = classes.to(unit.device)
    top = over_processes(classes.max() if len(classes) else classes.new_tensor(0), group, "max")
    sums = unit.new_zeros(int(top) + 1, unit.shape[1]).index_add(0, classes, unit)
    # A zero row has no direction: it belongs to no pair.
    counted = (unit != 0).any(1).double()
    counts = counted.new_zeros(int(top) + 1).index_add(0, classes, counted)
    sums, counts = over_processes(sums, group), over_processes(counts, group)
    whole, pairs = _mean_cosine(sums.sum(0, keepdim=True), counts.sum(0, keepdim=True))
    within, same = _mean_cosine(sums, counts)

    def mean(total: float, number: float) -> float | None:
        return total / number if number else None

    between = mean(whole - within, pairs - same)
    return mean(whole, pairs), mean(within, same) if given else None, between if given else None


def _correlation(features: Tensor, group: Any) -> tuple[float | None, float, int]:
    """Root mean square correlation between units, share of constant ones, and the number of rows."""
    ones = features.new_tensor([float(len(features))])
    packed = over_processes(torch.cat([features.sum(0), ones]), group)
    rows = packed[-1]
    centred = features - packed[:-1] / rows
    squares = over_processes(centred.square().sum(0), group)
    # What rounding leaves of a constant column is far below its own size.
    sizes = over_processes(features.square().sum(0), group)
    moving = squares > 1e-24 * sizes
    columns = int(moving.sum())
    constant = 1 - columns / features.shape[1]
    if columns < 2:
        return None, constant, int(rows)
    centred = centred[:, moving] / squares[moving].sqrt()
    if group is None and len(centred) < columns:
        whole = (centred @ centred.T).square().sum()  # the same norm from the smaller product
    else:
        whole = over_processes(centred.T @ centred, group).square().sum()
    mean = (whole.item() - columns) / (columns * (columns - 1))
    return max(mean, 0.0) ** 0.5, constant, int(rows)


@costs(1, 0, memory="one layer's features in float64, three times, and features² or rows² numbers")
def feature_diversity(
    model: nn.Module,
    batch: Any,
    labels: Tensor | None = None,
    *,
    layers: Iterable[str] | None = None,
    inputs_of: Iterable[str] | None = None,
    group: Any = None,
) -> dict[str, FeatureDiversity]:
    """How alike examples and units are in each layer (arXiv 2112.00980; plasticity: arXiv 2303.01486).

    A plain deep network whose loss stands still often has all examples' features near one direction; a
    network that has lost plasticity often has many copies of few units. Sequences (batch, time, features),
    and those of 1-D convolutions, count every position as an example; images and other shapes are flattened
    to one row an example.

    Args:
        model: run once in evaluation mode without gradients; its ``training`` flags are put back. Behind DDP
            or ``torch.compile`` the module itself is run.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        labels: classes of the examples, int64, as many as there are rows in every layer.
        layers, inputs_of: names of modules whose outputs, or inputs, to look at; by default every activation,
            as for :func:`dormant_neurons`.
        group: process group whose members each hold a part of the batch and all call this; None for one.

    Returns:
        Layer to its diversity; the second run of a module is ``name[1]``.

    Raises:
        ValueError: a layer is unknown, does not run or returns no finite tensor of two dimensions or more;
            labels do not fit.
    """
    if labels is not None and (labels.is_floating_point() or (labels < 0).any()):
        got = labels.dtype if labels.is_floating_point() else labels.min().item()
        raise ValueError(f"labels must be classes, integers of at least 0, got {got}")
    wanted = None if labels is None else labels.flatten().long()
    model = bare(model)
    found: dict[str, FeatureDiversity] = {}

    def checked(run: str, output: Tensor) -> Tensor:
        features = feature_rows(run, output).double()
        if not bool(features.isfinite().all()):
            raise ValueError(f"layer {run!r} must return finite features, got NaN or infinity")
        if wanted is not None and len(features) not in (0, len(wanted)):
            raise ValueError(f"labels must be {len(features)}, one a row of layer {run!r}, got {len(wanted)}")
        return features

    def measure(run: str, output: Tensor) -> None:
        features = checked(run, output)
        if not int(over_processes(torch.tensor(len(features), device=features.device), group)):
            return  # an expert to which no example went
        norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        unit = features / norms.clamp_min(torch.finfo(features.dtype).tiny)
        whole, same, different = _cosines(unit, None if wanted is None else wanted[: len(unit)], group)
        correlation, constant, rows = _correlation(features, group)
        found[run] = FeatureDiversity(whole, same, different, correlation, constant, rows, features.shape[1])

    with one_state(model, group):
        overhear_units_of_all(model, batch, measure, layers, inputs_of, group, checked)
    return some(found)
