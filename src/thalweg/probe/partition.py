"""Output-logit drift (arXiv 2309.14322): how far the softmax's normaliser has moved from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg._core.checks import check_kind
from thalweg.probe._wrapped import over_processes
from thalweg.probe.cost import costs

__all__ = ["OutputLogits", "output_logits"]


@dataclass(frozen=True)
class OutputLogits:
    """Where the output logits of a batch stand; a drift is seen by comparing readings.

    Attributes:
        log_z: mean of log Z, Z the sum of exp(logit) over the classes, in nats. Cross-entropy does not see it
            change; the z-loss holds it near zero.
        log_z_min, log_z_max: its least and largest value.
        mean: of all logits. Under drift it falls with log Z, or ever further below it.
        largest: largest absolute logit.
        examples: positions that counted.
    """

    log_z: float
    log_z_min: float
    log_z_max: float
    mean: float
    largest: float
    examples: int


@torch.no_grad()
@costs(0, 0, memory="two copies of the logits in float32")
def output_logits(
    logits: Tensor, targets: Tensor | None = None, *, ignore_index: int = -100, group: Any = None
) -> OutputLogits:
    """log Z and size of the logits of a batch (arXiv 2309.14322).

    Sums are kept in float32 at least. Nothing that is not finite is an error: it is what a run that fails
    shows.

    Args:
        logits: shape (..., classes), as the training step has them; -inf masks a class.
        targets: shape (...), only to leave out positions; by default all count.
        ignore_index: target of positions that do not count.
        group: process group whose members each hold a part of the batch and all call this; None for one.

    Raises:
        ValueError: shapes do not fit, there is no class or no position counts.
    """
    check_kind("logits", logits, Tensor, "a tensor")
    if not logits.dim() or not logits.shape[-1]:
        raise ValueError(f"logits must have shape (..., classes), got {tuple(logits.shape)}")
    flat = logits.reshape(-1, logits.shape[-1])
    if targets is not None:
        if targets.shape != logits.shape[:-1]:
            raise ValueError(
                f"targets must have the shape of logits without its last dimension, got "
                f"{tuple(targets.shape)} for logits {tuple(logits.shape)}"
            )
        flat = flat[targets.reshape(-1) != ignore_index]
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    log_z = flat.logsumexp(-1)
    allowed = flat != -torch.inf
    sums = [log_z.sum(dtype=torch.float64), flat.where(allowed, 0).sum(dtype=torch.float64), allowed.sum()]
    total = over_processes(torch.stack([*sums, torch.full_like(sums[0], len(flat))]), group)
    if not total[3] > 0:
        raise ValueError(f"logits must hold a position that counts, got shape {tuple(logits.shape)}")
    # A process without a position that counts has no say in the extremes.
    none = flat.new_tensor([-torch.inf])
    extremes = [torch.cat([x.flatten(), none]).max() for x in (-log_z, log_z, flat.abs().where(allowed, 0))]
    low, high, largest = over_processes(torch.stack(extremes), group, "max").tolist()
    return OutputLogits(
        log_z=(total[0] / total[3]).item(),
        log_z_min=-low,
        log_z_max=high,
        mean=(total[1] / total[2]).item(),
        largest=largest,
        examples=int(total[3]),
    )
