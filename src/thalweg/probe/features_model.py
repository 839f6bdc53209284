r"""Collapse in a model of free features (arXiv 2210.16658): flow, minimiser and response to a perturbation.

K classes of n examples, features :math:`H` (a column each, :math:`h` of one example), a ridge classifier
:math:`W` fitted to one-hot targets :math:`Y`, and a pull towards given features :math:`H_0`, such as those of
the layer before:

.. math:: \frac{1}{2Kn}\|WH - Y\|^2 + \frac{\lambda_W}{2K}\|W\|^2 + \frac{\lambda_H}{2Kn}\|H\|^2 +
    \frac{\beta}{2Kn}\|H - H_0\|^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_count, check_positive
from thalweg.probe._class_sums import ClassSums, rows_of
from thalweg.probe.cost import costs

__all__ = [
    "CollapsePath",
    "CollapsedFeatures",
    "collapse_path",
    "collapsed_features",
    "pulled_features",
    "ridge_classifier",
]


@dataclass(frozen=True)
class CollapsePath:
    """Features along the flow of the model without a pull.

    Attributes:
        times: of the readings, from 0.
        variability: Tr S_W / Tr S_B at each; falls all the way to 0.
        within, between: Tr S_W and Tr S_B at each. Times e^(2 λ_H t), the one falls, the other rises.
        features: at the end, shape (examples, width), float64.
    """

    times: tuple[float, ...]
    variability: tuple[float, ...]
    within: tuple[float, ...]
    between: tuple[float, ...]
    features: Tensor


@dataclass(frozen=True)
class CollapsedFeatures:
    """What the minimisers without a pull look like, and how they answer a small change of ``H_0``.

    Attributes:
        strength: c, the root of λ_H λ_W; from 1 on everything is zero.
        squared_norm: of every class mean; the means are orthogonal, and the classifier's rows are theirs
            times ``alignment``.
        alignment: the root of λ_H / λ_W.
        within: least and largest factor by which the pull hands on a change within a class, as exact
            singular values; to first order in 1/β the least is 1 - alignment/β.
        between: norm of the rank-one block by which a change of one class moves another, to first order in
            1/β: 2 λ_H (1 - c) / β.
    """

    strength: float
    squared_norm: float
    alignment: float
    within: tuple[float, float]
    between: float


def _columns(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Features as columns, one-hot targets, and examples a class."""
    if features.dim() != 2:
        raise ValueError(f"features must be a matrix (examples, width), got shape {tuple(features.shape)}")
    rows, wanted = rows_of("features", features, labels, ignore_index=-1)
    classes, counts = wanted.unique(return_counts=True)
    if len(classes) < 2 or int(counts.min()) != int(counts.max()):
        raise ValueError(
            f"labels must be of two classes or more, equally often, got counts {counts.tolist()}"
        )
    targets = (classes[:, None] == wanted[None, :]).double()
    return rows.T, targets, int(counts[0])


def _ridge(columns: Tensor, targets: Tensor, n: int, weight_decay: float) -> Tensor:
    gram = columns @ columns.T
    gram.diagonal().add_(n * weight_decay)
    return torch.linalg.solve(gram, columns @ targets.T).T


def _force(columns: Tensor, targets: Tensor, n: int, weight_decay: float, feature_decay: float) -> Tensor:
    """K n times the gradient of the loss whose classifier is always the best one."""
    weight = _ridge(columns, targets, n, weight_decay)
    return weight.T @ (weight @ columns - targets) + feature_decay * columns


@torch.no_grad()
@costs(0, 0, memory="the width squared, in float64")
def ridge_classifier(features: Tensor, labels: Tensor, *, weight_decay: float) -> Tensor:
    r"""The best linear classifier of one-hot targets, :math:`Y H^T (H H^T + n \lambda_W I)^{-1}`.

    Args:
        features: shape (examples, width).
        labels: int64, shape (examples,), each class equally often.
        weight_decay: :math:`\lambda_W`, greater than 0.

    Returns:
        Shape (classes, width), float64.

    Raises:
        ValueError: shapes do not fit, classes are unbalanced or fewer than two, or the decay is out of range.
    """
    check_positive("weight_decay", weight_decay)
    return _ridge(*_columns(features, labels), weight_decay)


@torch.no_grad()
@costs(0, 0, memory="three copies of the features in float64")
def collapse_path(
    features: Tensor,
    labels: Tensor,
    *,
    weight_decay: float,
    feature_decay: float,
    time: float,
    step: float = 0.02,
    readings: int = 50,
) -> CollapsePath:
    r"""Follow :math:`\dot H = -Kn \nabla L(H)` from given features, by Euler's method (Theorem 3.1).

    Args:
        features, labels, weight_decay: as for :func:`ridge_classifier`.
        feature_decay: :math:`\lambda_H`, greater than 0.
        time: how far to go, greater than 0.
        step: of Euler's method, greater than 0; the default suits features of norm about 1 and more.
        readings: how many to take, evenly, beside the first.

    Raises:
        ValueError: as :func:`ridge_classifier`; a bad argument; the step is too long and the features blow
            up.
    """
    for name, value in (("weight_decay", weight_decay), ("feature_decay", feature_decay), ("step", step)):
        check_positive(name, value)
    check_positive("time", time)
    check_count("readings", readings)
    columns, targets, n = _columns(features, labels)
    steps = max(1, round(time / step))
    marks = {round(i * steps / readings) for i in range(readings + 1)}
    rows: list[tuple[float, float, float, float]] = []
    for number in range(steps + 1):
        if number in marks:
            within, between = _scatter(columns.T, labels)
            rows.append((number * step, within / between, within, between))
        if number < steps:
            columns = columns - step * _force(columns, targets, n, weight_decay, feature_decay)
            if not bool(columns.square().sum().isfinite()):
                raise ValueError(f"step must be short enough for the features to stay finite, got {step}")
    times, variability, within_all, between_all = zip(*rows, strict=True)
    return CollapsePath(times, variability, within_all, between_all, columns.T.contiguous())


def _scatter(rows: Tensor, labels: Tensor) -> tuple[float, float]:
    sums = ClassSums()
    sums.add(*rows_of("features", rows, labels, ignore_index=-1))
    sums = sums.over(None)
    between = sums.centred.square().sum(1).mean().item()
    return sums.variability * between, between


@torch.no_grad()
@costs(0, 0, memory="four copies of the features in float64")
def pulled_features(
    features: Tensor,
    labels: Tensor,
    *,
    pull: float,
    weight_decay: float,
    feature_decay: float,
    tolerance: float = 1e-10,
    iterations: int = 1000,
) -> Tensor:
    r"""The minimiser near ``features``, :math:`H_0`: what one more layer of the model makes of them.

    From a large enough pull on, its variability is below that of ``features`` (Corollary 3.2). Found by
    iterating :math:`H \leftarrow (W^T W + (\lambda_H + \beta) I)^{-1} (W^T Y + \beta H_0)` with the best
    :math:`W` for each :math:`H`: the loss falls with every step.

    Args:
        features, labels, weight_decay: as for :func:`ridge_classifier`.
        pull: :math:`\beta`, greater than 0.
        feature_decay: :math:`\lambda_H`, greater than 0.
        tolerance: ends when a step changes the features by less, relative to their norm.
        iterations: the most to make.

    Returns:
        Shape (examples, width), float64.

    Raises:
        ValueError: as :func:`ridge_classifier`; a bad argument; no convergence.
    """
    for name, value in (("weight_decay", weight_decay), ("feature_decay", feature_decay), ("pull", pull)):
        check_positive(name, value)
    check_positive("tolerance", tolerance)
    start, targets, n = _columns(features, labels)
    columns = start
    for _ in range(check_count("iterations", iterations)):
        weight = _ridge(columns, targets, n, weight_decay)
        gram = weight.T @ weight
        gram.diagonal().add_(feature_decay + pull)
        moved = torch.linalg.solve(gram, weight.T @ targets + pull * start)
        change = (moved - columns).norm()
        columns = moved
        if bool(change <= tolerance * columns.norm()):
            return columns.T.contiguous()
    raise ValueError(f"iterations must suffice for a relative change of {tolerance:g}, got {iterations}")


@costs(0, 0, memory="none")
def collapsed_features(
    *, weight_decay: float, feature_decay: float, pull: float = math.inf
) -> CollapsedFeatures:
    """Predictions for the collapsed state (Theorem 2.1) and for small changes about it (Theorem 4.2).

    A larger feature decay shrinks changes within a class more, a larger weight decay less: it is the decay of
    the features that speeds collapse.

    Args:
        weight_decay, feature_decay: greater than 0.
        pull: β, greater than 0; infinite hands on every change as it is.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("weight_decay", weight_decay)
    check_positive("feature_decay", feature_decay)
    if pull != math.inf:
        check_positive("pull", pull)
    strength = math.sqrt(feature_decay * weight_decay)
    alignment = math.sqrt(feature_decay / weight_decay)
    left = max(0.0, 1 - strength)
    # Along the class means the classifier's |w|² comes to the decay; with 1 - c both make the alignment.
    stiffest = alignment if left else feature_decay
    return CollapsedFeatures(
        strength=strength,
        squared_norm=left / alignment,
        alignment=alignment,
        within=(1 / (1 + stiffest / pull), 1 / (1 + feature_decay / pull)),
        between=2 * feature_decay * left / pull,
    )
