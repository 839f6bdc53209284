"""The two numbers a parameter from which coherence and noise scale follow, over all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count
from thalweg.probe._example_batch import LossFn
from thalweg.probe._example_pass import example_sums
from thalweg.probe._example_ranks import group_of, summed
from thalweg.probe._example_reduce import Sums, Wanted
from thalweg.probe._wrapped import on_every_rank, one_state


def check_chunk(chunk_size: int | None) -> int | None:
    return None if chunk_size is None else check_count("chunk_size", chunk_size)


@dataclass(frozen=True)
class Moments:
    """By parameter, over the examples of all processes: squared norm of the mean, and mean of the squares."""

    of_mean: Tensor
    mean: Tensor
    names: tuple[str, ...]
    examples: int
    loss: float
    materialised: tuple[str, ...]


def own_sums(
    model: nn.Module, batch: Any, loss_fn: LossFn, wanted: Wanted, chunk_size: int | None, verify: bool
) -> Sums:
    """What :func:`example_sums` gives of a process's own examples, with the buffers that DDP would use.

    Raises:
        ValueError: as there, or on another process.
    """
    group, chunk = group_of(model), check_chunk(chunk_size)

    def make() -> Sums:
        return example_sums(model, batch, loss_fn, wanted, chunk_size=chunk, verify=verify)

    with one_state(model, group):
        return on_every_rank(make, group, model, "loss_fn")


def gradient_moments(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    chunk_size: int | None,
    verify: bool,
) -> Moments:
    group = group_of(model)
    sums = own_sums(model, batch, loss_fn, Wanted(totals=True), chunk_size, verify)
    names = tuple(sums.norms)
    squared = torch.stack([sums.norms[name].double().sum() for name in names])
    counts = squared.new_tensor([len(sums.losses), sums.losses.double().sum().item()])
    examples, loss = summed(counts, group).tolist()
    mean = summed(squared, group) / examples
    lengths = [
        torch.linalg.vector_norm(summed(sums.totals[name], group), dtype=torch.float64).square()
        for name in names
    ]
    return Moments(torch.stack(lengths) / examples**2, mean, names, int(examples), loss / examples, sums.slow)
