"""Signal-to-noise ratio of every single weight's gradient (arXiv 2001.07384)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._example_batch import LossFn
from thalweg.probe._example_moments import own_sums
from thalweg.probe._example_ranks import group_of, summed
from thalweg.probe._example_reduce import Wanted
from thalweg.probe.cost import costs
from thalweg.probe.example_gradients import MEMORY

__all__ = ["GradientSignalToNoise", "gradient_signal_to_noise"]


@dataclass(frozen=True)
class GradientSignalToNoise:
    r"""Squared mean over variance of per-example gradients, weight by weight; without unit.

    Attributes:
        ratio: name of the parameter to :math:`r_j = \mathrm{mean}_i(g_{ij})^2 / \mathrm{var}_i(g_{ij})`, of
            its shape. 0 where the mean is zero; infinite where it is not and no example differs. Without any
            signal a mean over B examples still has about 1/B. Above a million (in float32) it is
            rounding, and may be infinite.
        per_layer: name to the mean of the finite ratios of its weights.
        mean: mean of all finite ratios.
        variance: name to :math:`\mathrm{var}_i(g_{ij})`, with B - 1 in the denominator.
        examples: B.
        materialised: as in :class:`ExampleGradientNorms`.
    """

    ratio: dict[str, Tensor]
    per_layer: dict[str, float]
    mean: float
    variance: dict[str, Tensor]
    examples: int
    materialised: tuple[str, ...]


@costs(2, 2, memory="four copies of the parameters; " + MEMORY)
def gradient_signal_to_noise(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    *,
    unbiased: bool = False,
    chunk_size: int | None = None,
    verify: bool = True,
) -> GradientSignalToNoise:
    r"""Signal-to-noise ratio of each weight's gradient over a batch (arXiv 2001.07384).

    The sum of squared gradients that it needs is, for a linear layer with one position an example,
    :math:`(d^2)^T (a^2)`: nothing is written out. With positions the gradients of a few examples at a time
    are. Under DistributedDataParallel the examples of all processes count as one batch.

    Args:
        unbiased: subtract the 1/B that noise alone leaves in the squared mean; ratios may then be negative.
        model, batch, loss_fn, chunk_size, verify: as in :func:`example_gradient_norms`; at least 2 examples.

    Raises:
        ValueError: as there; there is only one example.
    """
    wanted = Wanted(totals=True, squares=True)
    group = group_of(model)
    sums = own_sums(model, batch, loss_fn, wanted, chunk_size, verify)
    like = sums.losses.new_tensor([len(sums.losses)], dtype=torch.float64)
    b = int(summed(like, group).item())
    if b < 2:
        raise ValueError(f"batch must hold at least 2 examples, got {b}")
    ratio, variance = {}, {}
    for name in sums.norms:
        mean = summed(sums.totals.pop(name), group) / b
        square = summed(sums.squares.pop(name), group) / b
        spread = (square - mean.square()).mul_(b / (b - 1)).clamp_min_(0)
        found = mean.square() / spread - (1 / b if unbiased else 0)
        ratio[name] = torch.where((mean == 0) & (spread == 0), 0, found)
        variance[name] = spread
    layers = {
        name: (r[r.isfinite()].double().sum().item(), int(r.isfinite().sum())) for name, r in ratio.items()
    }
    counted = sum(n for _, n in layers.values())
    return GradientSignalToNoise(
        ratio,
        {name: total / n if n else math.inf for name, (total, n) in layers.items()},
        math.fsum(total for total, _ in layers.values()) / counted if counted else math.inf,
        variance,
        b,
        sums.slow,
    )
