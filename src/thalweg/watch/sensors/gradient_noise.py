"""Noise and signal in the gradient, from parts of the batch (arXiv 1812.06162, 2203.10036)."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe import preconditioner_of, stability_limit
from thalweg.probe._example_batch import changed, count, taken, undisturbed
from thalweg.watch.clipped import left_by_clipping
from thalweg.watch.coming_step import behind
from thalweg.watch.different_examples import different
from thalweg.watch.fitted_noise import FittedNoise
from thalweg.watch.moment import Moment, Raw, examples, kept, sensor
from thalweg.watch.normalising import (
    SYNCHRONISED,
    asks_other_processes,
    mixing_examples,
    normalising_as_in_training,
)
from thalweg.watch.optimizer_kind import innermost
from thalweg.watch.whole_batches import why_whole

PARTS = 8
EXAMPLES = 128, 256
# Batches of fewer examples are not halved where examples are normalised together.
HALVED = 16
MEMORY = 0.9
FELT = 1e-3
# A noise scale below so many batches, and examples, is small enough to ask whether batches agree as their
# examples do: the thousand examples that are kept of earlier ones give the gradient of all then.
SMALL = 0.2, 100.0


def _passes(at: Moment) -> float:
    assert at.model is not None
    have, mixed = examples(at.batch), mixing_examples(at.model)
    used = _used(have, mixed) if have >= HALVED or not mixed else 2 * have
    return 3 * used / have


@sensor("gradient noise", share=1.0, every=5, passes=_passes, needs=("model", "loss_fn", "batch"))
def gradient_noise(at: Moment) -> list[Raw]:
    r"""Noise scale and coherence of single examples, from the gradients of eight small parts of the batch.

    With part gradients :math:`g_j` of b examples each, :math:`s = \mathrm{mean}_{j \ne k}\, g_j \cdot g_k`
    and :math:`q = \mathrm{mean}_j \|g_j\|^2`: the signal :math:`\|G\|^2` is s, the noise
    :math:`\mathrm{tr}\,\Sigma` is b(q - s), both without bias. A batch of fewer than eight examples is joined
    by those of the last readings.

    Dropout is off. Batch normalisation normalises by the part, as training does by the batch: there are two
    parts then, the halves of the batch (of fewer than 16 examples, this batch and that of the last reading),
    since statistics of a few examples have noise of their own. By running statistics, or by those of the
    batch held fixed, noise and signal came out 0.04 to 100 times those of minibatches in training.

    Where the noise is small, the gradient of an earlier batch's part is asked for too, at the weights of now:
    of batches drawn from all of the data its inner product with these has the mean s as well (``agreement of
    batches``).

    The scale is the ratio of means over some ten readings; what one reading gave is in ``extra``. There too,
    of optimizers whose step is a known multiple P of the gradient: ``step``, :math:`\sum P g^2` of the
    gradient g that the coming step takes, and ``gain``, what the signal alone would give, the loss that a
    small step takes away; both in units of loss, and for the rate that clipping leaves. ``by heart`` is how
    far the loss would fall if the weights fitted noise alone.
    """
    assert at.model is not None and at.loss_fn is not None
    params = [p for p in at.named.values() if p.requires_grad and p.grad is not None]
    if any(p.is_complex() or p.grad.is_sparse for p in params if p.grad is not None):
        return at.silent("it is read of real weights with dense gradients")
    if (why := why_whole(at)) is not None:
        return at.silent(why)
    if asks_other_processes(at.model):
        return at.silent(SYNCHRONISED)
    at.silent(None)
    parts = _parts(at, mixing_examples(at.model))
    if not parts or not params:
        return []
    size = count(parts[0])
    rates = _rates(at, params)
    plain, moved = _Sums(), _Sums()
    fitted: FittedNoise = at.memory.setdefault("fitted noise", FittedNoise())
    weights, seen = sum(p.numel() for p in params), different(at)
    norms = normalising_as_in_training(at.model)
    with undisturbed(at.model):
        for norm in norms:
            norm.training = True
        for part in parts:
            with fitted.part(at.model, part) as heard:
                loss = at.loss_fn(at.model, part)
                heard.append(loss)
            gradient = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
            plain.add(gradient)
            if rates is not None:
                moved.add([g * rate.sqrt() for g, rate in zip(gradient, rates, strict=True)])
        across = _across(at, params, plain, seen)
        left = 1.0 if rates is None else left_by_clipping(at, params)
    signal, noise = plain.signal, size * plain.spread
    memory = at.memory
    for name, value in (("signal", signal), ("noise", noise)):
        memory[name] = value if name not in memory else MEMORY * memory[name] + (1 - MEMORY) * value
    scale = memory["noise"] / memory["signal"] if memory["signal"] > 0 else math.inf
    extra = {"signal": signal, "noise": noise, "batch": float(examples(at.batch))}
    extra |= {"weights": float(weights), "different": float(seen), "by heart": fitted.bound(weights, seen)}
    if rates is not None:
        # A step is the rate times c g, of which g was read: the rate that clipping leaves is c times it.
        extra |= {"step": _step(at, params, rates) / left, "gain": moved.signal * left}
    total = signal + noise
    agreement = []
    if across is not None:
        apart = {"across": across, "within": signal, "batch": extra["batch"]}
        agreement = [Raw("agreement of batches", across / signal if signal > 0 else math.nan, extra=apart)]
    return [
        *agreement,
        Raw("gradient noise scale", scale, extra=extra),
        Raw("gradient coherence", signal / total if total > 0 else math.nan, extra=extra),
    ]


class _Sums:
    """Running sum of gradients, and of their squared lengths."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self.squares = 0.0
        self.count = 0

    def add(self, gradient: Any) -> None:
        before = self.total or [torch.zeros_like(g) for g in gradient]
        self.total = [t + g for t, g in zip(before, gradient, strict=True)]
        self.squares += float(_square(gradient))
        self.count += 1

    @property
    def signal(self) -> float:
        """Mean inner product of two different members: the squared length of their expectation."""
        return (float(_square(self.total)) - self.squares) / (self.count * (self.count - 1))

    @property
    def spread(self) -> float:
        return self.squares / self.count - self.signal


def _across(at: Moment, params: list[nn.Parameter], here: _Sums, seen: int) -> float | None:
    """Mean inner product of the gradient here with that of an earlier batch, if the noise is small enough.

    Not of a batch that is all that was ``seen``: the earlier ones are no others.
    """
    have, memory = examples(at.batch), at.memory
    small = min(SMALL[0] * have, SMALL[1]) * memory.get("signal", 0.0)
    part = at.earlier.any()
    if memory.get("noise", math.inf) >= small or part is None or seen <= have:
        return None
    assert at.model is not None and at.loss_fn is not None
    loss = at.loss_fn(at.model, part)
    gradient = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
    pairs = zip(here.total, gradient, strict=True)
    return float(torch.stack([(t.detach().float() * g.float()).sum() for t, g in pairs]).sum()) / here.count


def _square(tensors: Any) -> Tensor:
    return torch.stack([t.detach().float().square().sum() for t in tensors]).sum()


def _used(have: int, mixed: bool) -> int:
    """How many examples of a batch are looked at: a quarter, at least 128 and at most 256 if there are.

    Of examples that are normalised together, 256: the statistics of half of them are to be the batch's.
    """
    return min(have, EXAMPLES[1] if mixed else max(EXAMPLES[0], min(have // 4, EXAMPLES[1])))


def _parts(at: Moment, mixed: bool) -> list[Any]:
    """Parts of equal size, each some examples of the batch at hand or of one of the last; none if too few."""
    batch, have = at.batch, count(at.batch)
    wanted = 2 if mixed else PARTS
    cuts = min(have, wanted) if have >= HALVED or not mixed else 1
    size = min(_used(have, mixed) // cuts, have // cuts)
    # From all over the batch, which may be in some order.
    step = have // size
    parts = [taken(batch, have, slice(j, j + size * step, step)) for j in range(cuts)]
    if cuts == wanted:
        return parts
    held = at.memory.get("parts", deque(maxlen=wanted))
    if held.maxlen != wanted or (held and count(held[0]) != size):
        held = deque(maxlen=wanted)
    at.memory["parts"] = held
    # Training on all examples at once shows the same ones again, which would agree with themselves.
    if held and _same(held[-1], parts[-1]):
        return []
    held.extend(kept(part) for part in parts)
    return list(held) if len(held) == wanted else []


def _same(one: Any, other: Any) -> bool:
    pairs: tuple[list[Tensor], list[Tensor]] = [], []
    for part, found in zip((one, other), pairs, strict=True):
        changed(part, found.append)
    return len(pairs[0]) == len(pairs[1]) and all(map(torch.equal, *pairs))


def _rates(at: Moment, params: list[nn.Parameter]) -> list[Tensor] | None:
    """What each entry of the gradient is multiplied by, over all steps that it takes part in, if known."""
    if innermost(at.optimizer) is not at.optimizer:
        return None
    try:
        # What has no known limit of stability, such as a sign, is no multiple of the gradient either.
        stability_limit(at.optimizer)
        diagonals = preconditioner_of(at.optimizer, params)
    except ValueError:
        return None
    gradients = [p.grad if p.grad is None or at.scale is None else p.grad / at.scale for p in params]
    groups = {id(p): group for group in at.optimizer.param_groups for p in group["params"]}
    bounded = [one for one in behind(at.optimizer, params, diagonals, gradients) if isinstance(one, Tensor)]
    if len(bounded) < len(params):
        return None  # what works in a subspace moves no entry by a multiple of its own gradient
    usual = math.sqrt(float(_square([1 / one for one in bounded])) / sum(one.numel() for one in bounded))
    rates = []
    for p, diagonal in zip(params, bounded, strict=True):
        # Where gradients are a thousandth of the usual ones they add as little. In front of batch
        # normalisation they are rounding, which is not the same in parts of the batch.
        diagonal = torch.where(1 / diagonal < FELT * usual, 0.0, diagonal)
        momentum = float(groups[id(p)].get("momentum", 0.0))
        rates.append(diagonal * (float(groups[id(p)]["lr"]) / (1 - momentum)))
    return rates


def _step(at: Moment, params: list[nn.Parameter], rates: list[Tensor]) -> float:
    scale = 1.0 if at.scale is None else float(at.scale)
    pairs = zip(params, rates, strict=True)
    return float(_square([rate.sqrt() * p.grad for p, rate in pairs if p.grad is not None])) / scale**2
