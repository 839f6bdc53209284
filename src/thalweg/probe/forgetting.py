"""Forgetting events (arXiv 1812.05159): how often an example in training goes from right to wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from thalweg._core.checks import check_count
from thalweg.probe.cost import Cost

__all__ = ["ExampleForgetting", "ForgettingCounts"]

REFUSED = 2**62  # in place of a size
STATE = ("presentations", "events", "learned_at", "correct")


@dataclass(frozen=True)
class ForgettingCounts:
    """Where the examples of a run stand; tensors of length ``examples`` or lists of example numbers.

    Attributes:
        presentations: times each example was presented, int32.
        events: times each went from right to wrong between two presentations, int32; an example that was
            never right counts as forgotten at every presentation, the most there can be.
        learned_at: presentation, from 1, at which each was first right, int32; 0 for never.
        unforgettable: numbers of the examples that were right at some time and never wrong after it.
        never_learned: numbers of those that were presented and never right.
        unseen: numbers of those that were not presented.
        ranking: numbers of the presented examples, the least forgotten first, then the lower number: removing
            easy examples takes them from the front.
        total_events: forgetting events of the examples that were learned.
    """

    presentations: Tensor
    events: Tensor
    learned_at: Tensor
    unforgettable: Tensor
    never_learned: Tensor
    unseen: Tensor
    ranking: Tensor
    total_events: int


class ExampleForgetting:
    """Counts forgetting events while training goes on (arXiv 1812.05159).

    At every presentation of an example, tell whether the model had it right in that very training pass,
    before the update: ``seen.update(indices, logits.argmax(-1) == targets)``. Counting at evaluations gives
    other numbers. The first presentation cannot be an event. Runs with other seeds are combined by adding
    their ``counts().events``.

    An update costs a few operations on tensors of the size of the batch; 13 bytes an example are kept. With
    a process group every process calls ``update`` with its part of the batch, and all keep the counts of
    all; what a distributed sampler repeats to fill a batch counts once.

    Args:
        examples: size of the training set; indices are in [0, examples).
        device: where the counts are kept; tensors given to ``update`` are brought there. Off the CPU,
            indices are not checked, since that would wait for the device.
        group: process group whose members train on parts of the same data; None for one process.

    Raises:
        ValueError: ``examples`` is not a positive integer; from ``update``, indices and correctness do not
            fit or an index is out of range; from ``load_state_dict``, the state is of another size.
    """

    cost: ClassVar[Cost] = Cost(0, 0, memory="13 bytes an example")

    def __init__(self, examples: int, *, device: torch.device | str = "cpu", group: Any = None):
        self.examples = check_count("examples", examples)
        self.group = group
        self.presentations, self.events, self.learned_at = (
            torch.zeros(examples, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.correct = torch.zeros(examples, dtype=torch.int8, device=device)

    @torch.no_grad()
    def update(self, indices: Tensor | Sequence[int], correct: Tensor | Sequence[bool]) -> None:
        """Note a presentation of each of ``indices``, integers (n,), and whether it was right, booleans (n,).

        Both are tensors, arrays or lists. An index that occurs twice is presented once, and right only if it
        was right every time.
        """
        if self.group is None:
            at, right = self._checked(indices, correct)
        else:
            at, right = self._gathered(indices, correct)
        before = self.correct[at]
        # The least of all that were given, whatever the order: an index may stand there more than once.
        self.correct[at] = 1
        self.correct.scatter_reduce_(0, at, right, "amin")
        now = self.correct[at]
        times = self.presentations[at] + 1
        learned = self.learned_at[at]
        self.presentations[at] = times
        self.events[at] += before * (1 - now)
        self.learned_at[at] = torch.where((learned == 0) & (now == 1), times, learned)

    def _checked(
        self, indices: Tensor | Sequence[int], correct: Tensor | Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        indices, correct = torch.as_tensor(indices), torch.as_tensor(correct)
        if indices.dim() != 1 or indices.dtype.is_floating_point or indices.dtype is torch.bool:
            raise ValueError(
                f"indices must be integers of shape (n,), got {indices.dtype}, {tuple(indices.shape)}"
            )
        if correct.shape != indices.shape or correct.dtype is not torch.bool:
            raise ValueError(
                f"correct must be booleans of shape {tuple(indices.shape)}, got {correct.dtype}, "
                f"{tuple(correct.shape)}"
            )
        place = self.correct.device
        at, right = indices.to(place, torch.int64), correct.to(place, torch.int8)
        if place.type == "cpu" and len(at) and not 0 <= int(at.min()) <= int(at.max()) < self.examples:
            raise ValueError(
                f"indices must be in [0, {self.examples}), got {int(at.min())} to {int(at.max())}"
            )
        return at, right

    def _gathered(
        self, indices: Tensor | Sequence[int], correct: Tensor | Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """Those of all processes, whose parts may be of different sizes."""
        size = torch.tensor([REFUSED], device=self.correct.device)
        try:
            at, right = self._checked(indices, correct)
            size.fill_(len(at))
        finally:
            # Also after an error, or the others would wait for ever.
            distributed.all_reduce(size, distributed.ReduceOp.MAX, group=self.group)
        if int(size) == REFUSED:
            raise ValueError("indices and correct must fit on every process of group, and did not on another")
        packed = at.new_full((int(size),), -1)
        packed[: len(at)] = 2 * at + right
        parts = [torch.empty_like(packed) for _ in range(distributed.get_world_size(self.group))]
        distributed.all_gather(parts, packed, group=self.group)
        everyone = torch.cat(parts)
        everyone = everyone[everyone >= 0]
        return everyone // 2, (everyone % 2).to(torch.int8)

    def counts(self) -> ForgettingCounts:
        """The counts so far, as copies."""
        seen, learned = self.presentations > 0, self.learned_at > 0
        events = torch.where(learned, self.events, self.presentations)
        order = events.argsort(stable=True)
        return ForgettingCounts(
            presentations=self.presentations.clone(),
            events=events,
            learned_at=self.learned_at.clone(),
            unforgettable=(learned & (events == 0)).nonzero()[:, 0],
            never_learned=(seen & ~learned).nonzero()[:, 0],
            unseen=(~seen).nonzero()[:, 0],
            ranking=order[seen[order]],
            total_events=int(self.events.sum()),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the tensors kept; ``torch.load(weights_only=True)`` reads them."""
        return {name: getattr(self, name).clone() for name in STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`; nothing is changed if it does not fit."""
        for name in STATE:
            if name not in state or state[name].shape != (self.examples,):
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"state[{name!r}] must have shape ({self.examples},), got {got}")
        for name in STATE:
            getattr(self, name).copy_(state[name])
