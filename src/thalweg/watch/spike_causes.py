"""What came before a spike of the loss: the readings that tell one cause from another."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from thalweg.watch.rates_by_group import group_rates, sharpened
from thalweg.watch.readings import Reading

__all__ = ["Cause", "History", "cause_of"]

READ = ("gradient norm", "learning rate", "sharpness", "second moment lag", "attention logit")
KEPT = 100
# A learning rate that is so many times what it was so many steps before has jumped.
JUMP, JUMP_STEPS = 1.5, 10
# A gradient that is so many times its median is out of line; one below QUIET times is not.
TALL, QUIET = 4.0, 2.0
# Twice or more, g^2/v was so high and so many times its median; a single batch is in it after one step.
LAG, LAG_TIMES, LAG_STEPS = 3.0, 5.0, 10
LOGITS, LOGITS_TIMES = 50.0, 3.0
AFTER = 3
# What stays, after one step, at half of its height or more, and rises by no more than a quarter.
STAYS, GOES_ON = 0.5, 1.25
# Sharpness and attention logits of so many steps count.
FRESH = 60


@dataclass(frozen=True)
class Cause:
    """A cause, in words and numbers.

    Attributes:
        kind: ``learning rate``, ``second moment``, ``bad batch``, ``attention logits``, ``sharpness``,
            ``new data`` or ``unknown``.
        words: what was seen, as part of a sentence.
        numbers: by name, threshold included.
        layers: concerned, worst first.
    """

    kind: str
    words: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[str, ...] = ()


class History:
    """The latest readings of each name."""

    def __init__(self) -> None:
        self.past: dict[str, deque[Reading]] = {name: deque(maxlen=KEPT) for name in READ}

    def add(self, reading: Reading) -> None:
        self.past[reading.name].append(reading)

    def before(self, name: str, step: int, within: int = 10**9) -> list[Reading]:
        """Readings of the ``within`` steps before ``step``, that step left out."""
        return [one for one in self.past[name] if step - within <= one.step < step]


def cause_of(history: History, step: int, sudden: bool, losses: Sequence[float] = ()) -> Cause:
    """What led to a loss that rose at ``step``, the likeliest first.

    Args:
        sudden: the loss of the step before was as usual.
        losses: of this step and of those after it, as far as they are known.
    """
    found = (
        _rate(history, step)
        or _attention(history, step)
        or _second_moment(history, step, losses)
        or (_bad_batch(history, step) if sudden else None)
        or _sharpness(history, step)
        or (_new_data(history, step, losses) if sudden else None)
    )
    return found or Cause("unknown", "nothing that is being watched stood out before it")


def _rate(history: History, step: int) -> Cause | None:
    rates = [one for one in history.past["learning rate"] if one.step < step]
    if len(rates) < 2:
        return None
    # Readings come when a rate has changed: the last one before the window still held within it.
    start = max((one.step for one in rates if one.step <= step - JUMP_STEPS), default=0)
    held = [group_rates(one, one.value) for one in rates if one.step >= start]
    groups = [[one for one in column if one > 0] for column in zip(*held, strict=False)]
    risen = [column[-1] / min(column) if column else 0.0 for column in groups]
    group = max(range(len(risen)), key=risen.__getitem__)
    if risen[group] < JUMP:
        return None
    times, now = risen[group], groups[group][-1]
    numbers = {"learning rate": now, "learning rate times": times, "jump from": JUMP}
    of = f" of parameter group {group}" if min(risen) < JUMP else ""
    words = f"the learning rate{of} rose {times:.3g} times within {JUMP_STEPS} steps, to {now:.3g}"
    sharp = history.before("sharpness", step, FRESH)
    if sharp and "ratio" in sharp[-1].extra:
        ratio = sharp[-1].extra["ratio"] * sharpened(sharp[-1], held[-1])
        numbers["sharpness over its limit"] = ratio
        words += f", where sharpness is {ratio:.2g} times the stability limit"
    return Cause("learning rate", words, numbers)


def _second_moment(history: History, step: int, losses: Sequence[float]) -> Cause | None:
    """Steps that were too long: some of them came before the loss rose, or it went on rising with them."""
    late = history.before("second moment lag", step + AFTER, LAG_STEPS + AFTER)
    early = [one.value for one in history.past["second moment lag"] if one.step < step - LAG_STEPS]
    usual = median(early) if early else 1.0
    high = [one for one in late if one.value > max(LAG, LAG_TIMES * usual)]
    if len(high) < 2 or (high[0].step >= step and losses and max(losses) <= GOES_ON * losses[0]):
        return None
    worst = max(high, key=lambda one: one.value)
    return Cause(
        "second moment",
        f"Adam's second moment lagged behind: g^2/v was {worst.value:.3g} on average at step {worst.step}, "
        f"usually {usual:.2g}",
        {"g^2/v": worst.value, "g^2/v usually": usual, "lag from": max(LAG, LAG_TIMES * usual)},
        _highest(worst),
    )


def _bad_batch(history: History, step: int) -> Cause | None:
    """One gradient out of line, at this step or just before, and nothing before that."""
    norms = [one for one in history.past["gradient norm"] if one.step <= step and one.finite]
    early = [one.value for one in norms if one.step < step - JUMP_STEPS]
    if not early:
        return None
    usual = median(early)
    tall = [one for one in norms if one.step >= step - 2 and one.value > TALL * usual]
    if not tall:
        return None
    lead = [one.value for one in norms if tall[0].step - 4 <= one.step < tall[0].step]
    if not lead or median(lead) > QUIET * usual or _stays(history, tall[0]):
        return None
    times = tall[0].value / usual
    return Cause(
        "bad batch",
        f"a bad batch: the gradient of step {tall[0].step} alone was {times:.3g} times its median",
        {"gradient norm": tall[0].value, "gradient over its median": times, "spike from": TALL},
        _highest(tall[0]),
    )


def _stays(history: History, tall: Reading) -> bool:
    """Whether the gradients of the next steps, as far as they are known, are like this one."""
    after = [one.value for one in history.past["gradient norm"] if 0 < one.step - tall.step < AFTER]
    return bool(after) and median(after) > STAYS * tall.value


def _new_data(history: History, step: int, losses: Sequence[float]) -> Cause | None:
    """Loss and gradient as high at once as they are then, before any step was made on such a gradient."""
    norms = [one for one in history.past["gradient norm"] if one.finite]
    early = [one.value for one in norms if one.step < step - JUMP_STEPS]
    first = next((one for one in norms if one.step == step), None)
    if not early or first is None or not first.value > QUIET * median(early) or not _stays(history, first):
        return None
    if len(losses) < AFTER or not STAYS * losses[0] < min(losses) <= max(losses) <= GOES_ON * losses[0]:
        return None
    times = first.value / median(early)
    return Cause(
        "new data",
        f"no step led to it: loss and gradient, {times:.3g} times its median, were as high at once as they "
        f"stayed, so batches, targets or weights changed from outside between steps {step - 1} and {step}",
        {"gradient norm": first.value, "gradient over its median": times, "change from": QUIET},
        _highest(first),
    )


def _attention(history: History, step: int) -> Cause | None:
    logits = history.before("attention logit", step, FRESH)
    if not logits or logits[-1].value < LOGITS:
        return None
    times = logits[-1].value / max(min(one.value for one in logits), 1e-30)
    if times < LOGITS_TIMES:
        return None
    return Cause(
        "attention logits",
        f"attention logits had grown {times:.3g} times within {FRESH} steps, to {logits[-1].value:.3g}",
        {"attention logit": logits[-1].value, "attention logit times": times, "growth from": LOGITS_TIMES},
        _highest(logits[-1]),
    )


def _sharpness(history: History, step: int) -> Cause | None:
    # Read at the step of the loss, it is of the same weights.
    sharp = [one for one in history.before("sharpness", step + 1, FRESH + 1) if "ratio" in one.extra]
    if not sharp or sharp[-1].extra["ratio"] <= 1:
        return None
    ratio = sharp[-1].extra["ratio"]
    return Cause(
        "sharpness",
        f"sharpness was {ratio:.2f} times the stability limit at step {sharp[-1].step}",
        {"sharpness": sharp[-1].value, "sharpness over its limit": ratio, "limit from": 1.0},
    )


def _highest(reading: Reading) -> tuple[str, ...]:
    return tuple(sorted(reading.layers, key=lambda name: -reading.layers[name]))[:3]
