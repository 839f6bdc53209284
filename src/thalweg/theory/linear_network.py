"""Deep linear networks on white inputs (arXiv 1312.6120): modes to learn, weights that decouple them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from thalweg._core.checks import check_choice, check_count
from thalweg.theory._arrays import Floats, as_floats

__all__ = ["LinearModes", "decoupled_weights", "layer_imbalance", "linear_modes"]

WHITE = 1e-4
"""Largest deviation of the inputs' second moment from the identity that passes for rounding."""


@dataclass(frozen=True)
class LinearModes:
    """The singular modes of a linear task, strongest first: the order in which they are learned.

    Attributes:
        strengths: (r,), s in :func:`mode_curve`, all above 0.
        inputs: (r, in), orthonormal: the direction of the inputs that each mode reads.
        outputs: (r, out), orthonormal: the direction that it writes.
    """

    strengths: Floats
    inputs: Floats
    outputs: Floats

    def measured(self, weights: Sequence[Any]) -> Floats:
        """(r,) strengths of the modes in the product of ``weights``, first layer first, each (out, in)."""
        rows = self.inputs
        for i, matrix in enumerate(_matrices(weights)):
            if matrix.shape[1] != rows.shape[1]:
                raise ValueError(
                    f"weights[{i}] must have {rows.shape[1]} columns, got shape {tuple(matrix.shape)}"
                )
            rows = rows @ matrix.T
        if rows.shape[1] != self.outputs.shape[1]:
            raise ValueError(f"weights must end in {self.outputs.shape[1]} outputs, got {rows.shape[1]}")
        return (rows * self.outputs).sum(axis=1)


def linear_modes(inputs: Any, targets: Any, *, reduction: str = "sum") -> LinearModes:
    r"""The modes that a linear network learns from whitened data (arXiv 1312.6120).

    The singular value decomposition of :math:`\sum_n y_n x_n^T` for the loss
    :math:`\frac12 \sum_n \|y_n - W x_n\|^2`, of its mean over examples for the mean of the losses. With that
    loss :math:`\tau` in :func:`mode_curve` is 1 / learning rate. A loss that is also averaged over outputs,
    as ``torch.nn.functional.mse_loss`` is, has a gradient 2 / out times that of the mean.

    Args:
        inputs: (examples, in), whitened for the reduction: :math:`\sum_n x_n x_n^T`, or its mean, is the
            identity to 1e-4.
        targets: (examples, out).
        reduction: of the loss over examples, ``"sum"`` or ``"mean"``.

    Raises:
        ValueError: shapes do not fit, something is not finite, or the inputs are not white.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    x, y = _matrix("inputs", inputs), _matrix("targets", targets)
    if len(x) != len(y):
        raise ValueError(f"targets must have one row for each of {len(x)} inputs, got {len(y)}")
    share = 1.0 if reduction == "sum" else 1 / len(x)
    deviation = float(np.abs(share * x.T @ x - np.eye(x.shape[1])).max())
    if deviation > WHITE:
        raise ValueError(
            f"inputs must be white: the {reduction} of their outer products must be the identity to "
            f"{WHITE:g}, got {deviation:.3g} off; with correlated inputs modes do not learn on their own"
        )
    left, strengths, right = np.linalg.svd(share * y.T @ x, full_matrices=False)
    # Strengths at the level of rounding are no modes.
    kept = strengths > strengths[0] * max(y.shape[1], x.shape[1]) * np.finfo(float).eps
    return LinearModes(strengths[kept], right[kept], left.T[kept])


def decoupled_weights(
    modes: LinearModes, widths: Sequence[int], start: Any, *, seed: int = 0
) -> list[Floats]:
    r"""Initial weights under which every mode follows :func:`mode_curve` exactly (arXiv 1312.6120).

    :math:`W_l = R_{l}\, \mathrm{diag}(u_0^{1/L})\, R_{l-1}^T`, with the input directions as :math:`R_0`, the
    output directions as :math:`R_L` and random orthonormal columns in between.

    Args:
        modes: of the task.
        widths: sizes of the hidden layers, each at least the number of modes; empty for a single matrix.
        start: :math:`u_0`, of every mode or (r,) of each, at least 0.
        seed: of the random directions.

    Returns:
        One matrix (out, in) a layer, first layer first, as in ``torch.nn.Linear.weight``.

    Raises:
        ValueError: a width or start is out of range.
    """
    r = len(modes.strengths)
    starts = as_floats("start", np.broadcast_to(start, r) if np.ndim(start) == 0 else start, low=0)
    if len(starts) != r:
        raise ValueError(f"start must be one number or one for each of {r} modes, got {len(starts)}")
    rng = np.random.default_rng(seed)
    bases = [modes.inputs.T]
    for i, width in enumerate(widths):
        check_count(f"widths[{i}]", width, low=r)
        bases.append(np.linalg.qr(rng.standard_normal((width, r)))[0])
    bases.append(modes.outputs.T)
    share = starts ** (1 / (len(bases) - 1))
    return [after * share @ before.T for before, after in pairwise(bases)]


def layer_imbalance(weights: Sequence[Any]) -> list[Floats]:
    r"""What gradient flow conserves in a linear network: :math:`W_{l+1}^T W_{l+1} - W_l W_l^T`.

    Exact for any data, loss and initial weights; gradient descent drifts by the order of the learning rate.
    All zero for :func:`decoupled_weights`.

    Args:
        weights: first layer first, each (out, in); at least one.

    Returns:
        One matrix (width, width) for each hidden layer.

    Raises:
        ValueError: a weight is no finite matrix, or neighbours do not fit.
    """
    found = []
    matrices = _matrices(weights)
    for i, (before, after) in enumerate(pairwise(matrices)):
        if after.shape[1] != before.shape[0]:
            raise ValueError(
                f"weights[{i + 1}] must have {before.shape[0]} columns, got shape {tuple(after.shape)}"
            )
        found.append(after.T @ after - before @ before.T)
    return found


def _matrices(weights: Sequence[Any]) -> list[Floats]:
    if not len(weights):
        raise ValueError("weights must hold at least one matrix, got none")
    return [_matrix(f"weights[{i}]", weight) for i, weight in enumerate(weights)]


def _matrix(name: str, values: Any) -> Floats:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be a matrix, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array
