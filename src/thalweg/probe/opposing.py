"""Opposing signals (arXiv 2311.04163): small groups of examples whose losses swing against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_count, check_positive
from thalweg._core.not_finite import NotFiniteError
from thalweg.probe.cost import costs

__all__ = ["OpposingSignals", "opposing_signals"]

# The monitor's rule: few examples carry most of the change, and the two groups move against each other.
CARRIED = 0.5
AGAINST = -0.8


@dataclass(frozen=True)
class OpposingSignals:
    """Two groups of examples, chosen at one step and followed over all others.

    Attributes:
        rising, falling: positions of the examples whose loss rose and fell most in that step, largest first.
        step: the step they were chosen at, from row ``step`` of the losses to the next.
        rise, fall: mean change of loss of each group there (``rise`` above 0 and ``fall`` below, as a rule).
        correlation: of the two groups' mean changes over all other steps, in [-1, 1]; near -1 they swing
            against each other. NaN below 3 other steps, or where a group's loss does not change.
        share: of all absolute change of loss in that step, the part within the two groups, in [0, 1].
        top_loss_share: the part within as many examples with the highest loss before the step: these change
            much whatever they are, so that ``share`` says something only where it is well above.
        changes: mean change of loss of the rising and of the falling group in every step, (steps, 2).
        times: example to how often it was among those rising and falling most, over all steps in which the
            mean loss spiked (or over ``step`` alone if it never did); most often first.
        spikes: these steps.
    """

    rising: tuple[int, ...]
    falling: tuple[int, ...]
    step: int
    rise: float
    fall: float
    correlation: float
    share: float
    top_loss_share: float
    changes: Tensor
    times: dict[int, tuple[int, int]]
    spikes: tuple[int, ...]

    @property
    def found(self) -> bool:
        """More than half of the change within the groups, and a correlation below -0.8."""
        return self.share > CARRIED and self.correlation < AGAINST


def _correlation(a: Tensor, b: Tensor) -> float:
    if len(a) < 3:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    size = a.norm() * b.norm()
    return (a @ b / size).clamp(-1, 1).item() if size > 0 else math.nan


@costs(0, 0, memory="one copy of the losses in float64")
def opposing_signals(
    losses: Tensor | Sequence[Tensor],
    *,
    group: int | None = None,
    step: int | None = None,
    spike: float = 3.0,
) -> OpposingSignals:
    """Find two groups of examples whose losses move against each other (arXiv 2311.04163).

    The rows must be consecutive optimizer steps: with an oscillation of period two, every other step shows
    nothing. Record them with :func:`example_losses` on a fixed set of examples, without augmentation; under
    full-batch training these are the losses at hand. With batch normalisation take those of passes in
    training mode: running statistics lag behind the weights, and swing by themselves. Which examples a spike
    names by chance is settled by the other steps: the correlation leaves out the step at which the groups
    were chosen.

    Args:
        losses: of n examples over time, shape (steps + 1, n), finite: a tensor, an array, or rows in a
            list, such as the tensors of those steps.
        group: examples in each group; by default 1% of n and at least 1; at most half of n.
        step: where to choose the groups; by default where the mean loss rose most.
        spike: a step spikes if the rise of its mean loss is this many robust standard deviations (1.4826
            times the median absolute deviation) above the median.

    Raises:
        ValueError: an argument is out of range, or a loss is not finite.
    """
    if isinstance(losses, list | tuple) and losses and all(isinstance(row, Tensor) for row in losses):
        if len(shapes := {tuple(row.shape) for row in losses}) > 1:
            raise ValueError(f"losses must have rows of one length, got shapes {sorted(shapes)}")
        losses = torch.stack(list(losses))
    try:
        losses = torch.as_tensor(losses)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"losses must be a tensor, an array or rows of numbers; {error}") from error
    if losses.dim() != 2 or losses.shape[0] < 2 or losses.shape[1] < 2:
        raise ValueError(f"losses must have shape (2 or more, 2 or more), got {tuple(losses.shape)}")
    if not bool(losses.isfinite().all()):
        raise NotFiniteError("losses must be finite, got NaN or infinity")
    check_positive("spike", spike)
    n = losses.shape[1]
    size = max(1, n // 100) if group is None else check_count("group", group)
    if size > n // 2:
        raise ValueError(f"group must be at most half of the {n} examples, got {size}")
    table = losses.detach().double()
    change = table.diff(dim=0)
    mean = change.mean(1)
    at = int(mean.argmax()) if step is None else check_count("step", step, 0)
    if at >= len(change):
        raise ValueError(f"step must be below the {len(change)} steps, got {at}")

    rising, falling = _extremes(change[at], size)
    inside = torch.cat([rising, falling])
    whole = change[at].abs().sum()
    top = table[at].topk(2 * size).indices
    share, top_share = ((change[at, some].abs().sum() / whole).item() for some in (inside, top))
    groups = torch.stack([change[:, rising].mean(1), change[:, falling].mean(1)], 1)
    others = torch.arange(len(change), device=change.device) != at
    above = mean - mean.median()
    spikes = (above > spike * 1.4826 * above.abs().median()).nonzero().flatten().tolist() or [at]
    return OpposingSignals(
        tuple(rising.tolist()),
        tuple(falling.tolist()),
        at,
        groups[at, 0].item(),
        groups[at, 1].item(),
        _correlation(*groups[others].T),
        share if whole > 0 else 0.0,
        top_share if whole > 0 else 0.0,
        groups,
        _counted(change, spikes, size),
        tuple(spikes),
    )


def _extremes(change: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return change.topk(size).indices, change.topk(size, largest=False).indices


def _counted(change: Tensor, spikes: Sequence[int], size: int) -> dict[int, tuple[int, int]]:
    times = torch.zeros(change.shape[1], 2, dtype=torch.int64)
    for at in spikes:
        for column, members in enumerate(_extremes(change[at], size)):
            times[members.cpu(), column] += 1
    seen = times.sum(1).nonzero().flatten().tolist()
    rows = times.tolist()
    return {index: (rows[index][0], rows[index][1]) for index in sorted(seen, key=lambda i: -sum(rows[i]))}
