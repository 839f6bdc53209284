"""Losses of some fixed examples over time, and the groups in them that swing (arXiv 2311.04163)."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.probe import opposing_signals
from thalweg.probe._example_batch import count, taken
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.watch.fitted_noise import FittedNoise
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, few, how_to_give, kept, sensor
from thalweg.watch.normalising import (
    SYNCHRONISED,
    asks_other_processes,
    mixing_examples,
    normalising_as_in_training,
)
from thalweg.watch.whole_batches import why_whole

EXAMPLES = 256
ROWS = 32
ENOUGH = 16
PARTS = 8
# Fewer examples of a batch, normalised by themselves, would not be what they are in it.
WHOLE = 32
# One example in so many belongs to each group.
MEMBERS = 32
# What torch's cross entropy leaves out.
IGNORED = -100


def _passes(at: Moment) -> float:
    return min(1.0, EXAMPLES / examples(at.inputs))


@sensor("opposing signals", share=0.7, every=1, passes=_passes, needs=("model", "inputs", "targets"))
def opposing(at: Moment) -> list[Raw]:
    """Correlation of two groups' loss changes over the last 31 visits, on at most 256 fixed examples.

    The examples are those of the first batches; each group is a 32nd of them, at least 2, the ones that rose
    and fell most in the visit in which the mean loss rose most. Losses are cross entropies, or squared errors
    where targets are numbers like the outputs; of numbers in [0, 1] the loss function tells which. ``rising
    1`` and so on number the examples in the order in which batches came. Visits are best one step apart;
    where the budget allows fewer, swings are still seen unless all gaps are even.

    Batch normalisation normalises by each of these batches, as training does: running statistics lag ten
    steps behind, and swing by themselves (correlations of -0.3 and 0.0 came out where training's were 0.9
    and 0.4).
    """
    assert at.model is not None and at.inputs is not None and at.targets is not None
    if (why := why_whole(at)) is not None:
        return at.silent(why)
    if asks_other_processes(at.model):
        return at.silent(SYNCHRONISED)
    at.silent(None)
    memory = at.memory
    if memory.get("yes and no") is None:
        memory["yes and no"] = _yes_and_no(at)
    if memory["yes and no"] is None:
        return at.silent(f"targets are 0 or 1; whether outputs are logits {how_to_give('loss_fn')} tells")
    if memory.get("have", 0) < EXAMPLES and not memory.get("full"):
        _collect(at)
    rows: deque[Tensor] = memory["rows"]
    losses = []
    norms = normalising_as_in_training(at.model)
    with quiet(at.model):
        for norm in norms:
            norm.training = True
        for inputs, targets in memory["parts"]:
            output = call(at.model, inputs)
            found = _losses(output, targets, memory["yes and no"])
            if found is None:
                return at.over("targets are neither classes of the logits nor numbers like the outputs")
            losses.append(found)
    row = torch.cat(losses)
    if rows and len(rows[-1]) != len(row):
        rows.clear()
    rows.append(row)
    memory.setdefault("first", row.mean().item())
    size = max(len(row) // MEMBERS, 2)
    if len(rows) < ENOUGH or 4 * size > len(row):
        return []
    table = torch.stack(list(rows))
    if not bool(table.isfinite().all()):
        return []
    found = opposing_signals(table, group=size)
    extra = {
        "share": found.share,
        "top loss share": found.top_loss_share,
        "rise": found.rise,
        "fall": found.fall,
        "examples": float(len(row)),
        "group": float(size),
        "first loss": memory["first"],
        "loss by chance": _by_chance(output, targets, memory["yes and no"]),
    }
    for name, members in (("rising", found.rising), ("falling", found.falling)):
        extra |= {f"{name} {index}": float(one) for index, one in enumerate(members, start=1)}
    return [Raw("opposing signals", found.correlation, extra=extra)]


def _collect(at: Moment) -> None:
    """Keep the examples of this batch too, until there are enough."""
    assert at.model is not None and at.inputs is not None
    memory = at.memory
    parts: list[Any] = memory.setdefault("parts", [])
    memory.setdefault("rows", deque(maxlen=ROWS))
    room = EXAMPLES - memory.get("have", 0)
    if parts and room < min(WHOLE, examples(at.targets)) and mixing_examples(at.model):
        memory["full"] = True
        return
    batch = few(as_batch(at.model, *at.inputs), room), few(at.targets, room)
    # Training on all examples at once shows the same ones again.
    if parts and parts[0][1].shape == batch[1].shape and bool((parts[0][1] == batch[1]).all()):
        memory["full"] = True
        return
    parts.append(kept(batch))
    memory["have"] = memory.get("have", 0) + examples(batch[1])
    memory["full"] = len(parts) >= PARTS


def _by_chance(output: Any, targets: Tensor, yes_and_no: bool) -> float:
    """The loss of guessing, among classes or yes and no; 0 where targets are numbers."""
    logits = logits_of(output)
    if targets.is_floating_point():
        return math.log(2) * logits.numel() / len(logits) if yes_and_no else 0.0
    return math.log(logits.shape[-1])


def _yes_and_no(at: Moment) -> bool | None:
    """Whether targets are answers to yes and no, and outputs their logits; None if nobody knows.

    Numbers in [0, 1] may be fitted by squares as well: the loss function tells.
    """
    assert at.model is not None and at.targets is not None
    targets = at.targets
    if not targets.is_floating_point() or not bool(((targets >= 0) & (targets <= 1)).all()):
        return False
    if at.loss_fn is None or at.batch is None or (have := count(at.batch)) < 2:
        return None if bool(((targets == 0) | (targets == 1)).all()) else False
    fitted = FittedNoise()
    with quiet(at.model):
        for half in (slice(0, have // 2), slice(have // 2, have)):
            part = taken(at.batch, have, half)
            with fitted.part(at.model, part) as heard:
                heard.append(at.loss_fn(at.model, part))
    fitted.bound(1, have)
    return fitted.kind == "yes and no"


def _losses(output: Any, targets: Tensor, yes_and_no: bool) -> Tensor | None:
    """Loss of each example, or None if it is neither of classes nor of numbers."""
    output = logits_of(output)
    if not isinstance(output, Tensor) or not output.is_floating_point() or not output.ndim:
        return None
    if targets.dtype is torch.int64 and output.shape[:-1] == targets.shape:
        if not bool(((targets < output.shape[-1]) & (targets >= 0) | (targets == IGNORED)).all()):
            return None
        each = F.cross_entropy(
            output.flatten(0, -2).float(), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        counted = (targets != IGNORED).reshape(len(targets), -1)
        return each.view(len(targets), -1).sum(1) / counted.sum(1).clamp_min(1)
    if targets.is_floating_point() and output.numel() == targets.numel() and len(output) == len(targets):
        if yes_and_no:
            values, wanted = output.flatten().float(), targets.flatten().float()
            each = F.binary_cross_entropy_with_logits(values, wanted, reduction="none")
            return each.view(len(targets), -1).sum(1)
        return (output.flatten(1) if output.ndim > 1 else output[:, None]).float().sub(
            targets.reshape(len(targets), -1)
        ).square().sum(1) / 2
    return None
