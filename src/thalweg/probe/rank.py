"""How many directions a feature matrix really uses: three notions of rank, all from its singular values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_number
from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._example_ranks import gathered
from thalweg.probe._hidden import overhear_units_of_all
from thalweg.probe._units import some
from thalweg.probe._wrapped import bare, one_state, over_processes
from thalweg.probe.cost import costs

__all__ = [
    "FeatureRanks",
    "effective_rank",
    "feature_rank",
    "feature_rank_of",
    "feature_ranks",
    "stable_rank",
]

MEMORY = "the features in float64 and their singular values"


@dataclass(frozen=True)
class FeatureRanks:
    """Ranks of one layer's features over one batch.

    Attributes:
        feature_rank, effective_rank, stable_rank: as the functions of these names.
        rows: examples (times positions for sequences): no rank can exceed it.
        columns: features.
    """

    feature_rank: int
    effective_rank: float
    stable_rank: float
    rows: int
    columns: int


def _singular_values(features: Tensor) -> Tensor:
    features = torch.as_tensor(features)  # an array of numpy's does as well
    if features.dim() != 2 or not features.numel():
        raise ValueError(f"features must be a matrix (examples, features), got shape {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise NotFiniteError("features must be finite, got NaN or infinity")
    return torch.linalg.svdvals(features.detach().double())


def _effective_rank(values: Tensor) -> float:
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp().item() if bool(values.any()) else 0.0


def _stable_rank(values: Tensor) -> float:
    return (values / values[0]).square().sum().item() if bool(values.any()) else 0.0


def _feature_rank(values: Tensor, threshold: float) -> int:
    return int((values > threshold * values[0]).sum())


@costs(0, 0, memory=MEMORY)
def effective_rank(features: Tensor) -> float:
    r"""Exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    .. math:: \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \sigma_i / \sum_j \sigma_j

    Args:
        features: tensor or array, shape (examples, features), not centred here.

    Returns:
        Between 1 and the smaller side; 0 for the zero matrix.

    Raises:
        ValueError: not a matrix, empty, or not finite.
    """
    return _effective_rank(_singular_values(features))


@costs(0, 0, memory=MEMORY)
def stable_rank(features: Tensor) -> float:
    r"""Squared Frobenius norm over squared spectral norm, :math:`\sum_i \sigma_i^2 / \sigma_1^2`.

    Args:
        features: tensor or array, shape (examples, features), not centred here.

    Returns:
        Between 1 and the rank; 0 for the zero matrix.

    Raises:
        ValueError: not a matrix, empty, or not finite.
    """
    return _stable_rank(_singular_values(features))


@costs(0, 0, memory=MEMORY)
def feature_rank(features: Tensor, *, threshold: float = 0.01) -> int:
    """Number of singular values above ``threshold`` times the largest (as in arXiv 2303.01486).

    Args:
        features: tensor or array, shape (examples, features), not centred here.
        threshold: share of the largest singular value, in [0, 1).

    Raises:
        ValueError: not a matrix, empty, or not finite; ``threshold`` is out of range.
    """
    check_number("threshold", threshold, 0, 1, "[)")
    return _feature_rank(_singular_values(features), threshold)


def feature_rows(name: str, output: Tensor) -> Tensor:
    """One row an example, or a position of a sequence; shape (rows, features).

    Raises:
        ValueError: ``output`` has fewer than two dimensions.
    """
    if output.dim() < 2:
        raise ValueError(
            f"layer {name!r} must return (batch, features, ...), got shape {tuple(output.shape)}"
        )
    return output.flatten(0, 1) if output.dim() == 3 else output.flatten(1)


def _of_all(features: Tensor, group: Any) -> Tensor:
    """A matrix with the singular values of all processes' rows together."""
    if group is None:
        return features
    rows = features.detach().double()
    # The triangular factor has the same ones and few rows; the matrix of squares would lose half the digits.
    if len(rows) > rows.shape[1] and bool(rows.isfinite().all()):
        rows = torch.linalg.qr(rows, mode="r").R
    return gathered(rows, group)


@costs(1, 0, memory=f"{MEMORY}, one layer at a time; all features with a group")
def feature_ranks(
    model: nn.Module,
    batch: Any,
    *,
    layers: Iterable[str] | None = None,
    inputs_of: Iterable[str] | None = None,
    threshold: float = 0.01,
    group: Any = None,
) -> dict[str, FeatureRanks]:
    """Ranks of what each layer returns for a batch (arXiv 2303.01486).

    Sequences (batch, time, features) count every position as an example, and so do those of 1-D convolutions
    (batch, channels, time); images (batch, channels, height, width) and other shapes are flattened to one row
    an example.

    Args:
        model: run once in evaluation mode without gradients; its ``training`` flags are put back. Behind DDP
            or ``torch.compile`` the module itself is run.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        layers, inputs_of: names of modules whose outputs, or inputs, to look at; by default every activation,
            as for :func:`dormant_neurons`.
        threshold: as in :func:`feature_rank`.
        group: process group whose members each hold a part of the batch and all call this; None for one.

    Returns:
        Layer to its ranks; the second run of a module is ``name[1]``.

    Raises:
        ValueError: a layer is unknown, does not run or returns no finite tensor of two dimensions or more.
    """
    check_number("threshold", threshold, 0, 1, "[)")
    model = bare(model)
    found: dict[str, FeatureRanks] = {}

    def measure(run: str, output: Tensor) -> None:
        features = feature_rows(run, output)
        rows = over_processes(torch.tensor(len(features), device=features.device), group)
        every = _of_all(features, group)
        if not int(rows):  # an expert to which no example went
            return
        values = _singular_values(every)
        found[run] = FeatureRanks(
            feature_rank=_feature_rank(values, threshold),
            effective_rank=_effective_rank(values),
            stable_rank=_stable_rank(values),
            rows=int(rows),
            columns=features.shape[1],
        )

    with one_state(model, group):
        overhear_units_of_all(model, batch, measure, layers, inputs_of, group, feature_rows)
    return some(found)


@costs(1, 0, memory=MEMORY)
def feature_rank_of(
    model: nn.Module, batch: Any, *, layer: str, threshold: float = 0.01, group: Any = None
) -> FeatureRanks:
    """Ranks of what one layer returns for a batch; of its last run, if there are several.

    Args:
        model, batch, threshold, group: as in :func:`feature_ranks`.
        layer: name of the module.

    Raises:
        ValueError: as in :func:`feature_ranks`.
    """
    return list(feature_ranks(model, batch, layers=[layer], threshold=threshold, group=group).values())[-1]
