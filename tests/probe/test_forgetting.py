from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch

from thalweg.probe import ExampleForgetting


class Literal:
    """Each example's history kept whole, and counted at the end."""

    def __init__(self, examples: int):
        self.history: list[list[bool]] = [[] for _ in range(examples)]

    def update(self, indices, correct):
        given: dict[int, list[bool]] = {}
        for index, right in zip(indices.tolist(), correct.tolist(), strict=True):
            given.setdefault(index, []).append(right)
        for index, rights in given.items():
            self.history[index].append(all(rights))

    def events(self) -> list[int]:
        counts = []
        for past in self.history:
            falls = sum(was and not now for was, now in pairwise(past))
            counts.append(falls if any(past) else len(past))
        return counts

    def learned_at(self) -> list[int]:
        return [past.index(True) + 1 if any(past) else 0 for past in self.history]


def random_updates(examples: int, steps: int, seed: int = 0):
    """Batches of all sizes, some examples in them twice, the last tenth of the examples never."""
    source = torch.Generator().manual_seed(seed)
    chance = torch.rand(examples, generator=source)
    for _ in range(steps):
        size = int(torch.randint(0, examples, (1,), generator=source))
        indices = torch.randint(0, examples - examples // 10, (size,), generator=source)
        yield indices, torch.rand(size, generator=source) < chance[indices]


def test_counts_are_those_of_the_whole_history():
    seen, literal = ExampleForgetting(40), Literal(40)
    for indices, correct in random_updates(40, 30):
        seen.update(indices, correct)
        literal.update(indices, correct)
    found = seen.counts()
    assert found.events.tolist() == literal.events()
    assert found.learned_at.tolist() == literal.learned_at()
    assert found.presentations.tolist() == [len(past) for past in literal.history]
    assert found.unseen.tolist() == [36, 37, 38, 39]
    assert found.total_events == sum(
        n for n, past in zip(literal.events(), literal.history, strict=True) if any(past)
    )


def play(*histories: str) -> ExampleForgetting:
    """One example a history of R (right), W (wrong) and . (not presented)."""
    seen = ExampleForgetting(len(histories))
    for step in range(len(histories[0])):
        there = [index for index, past in enumerate(histories) if past[step] != "."]
        seen.update(torch.tensor(there), torch.tensor([histories[index][step] == "R" for index in there]))
    return seen


def test_only_a_fall_from_right_to_wrong_is_an_event():
    counts = play("WRRWRW", "WWRRRR", "RRRRRR", "R.W..R", "WWWWWW", "......").counts()
    assert counts.events.tolist() == [2, 0, 0, 1, 6, 0]
    assert counts.learned_at.tolist() == [2, 3, 1, 1, 0, 0]
    assert counts.unforgettable.tolist() == [1, 2]
    assert counts.never_learned.tolist() == [4]
    assert counts.unseen.tolist() == [5]
    # Never learned ranks as forgotten most, and what was not seen has no rank.
    assert counts.ranking.tolist() == [1, 2, 3, 0, 4]
    assert counts.total_events == 3


def test_an_example_twice_in_a_batch_is_presented_once_in_any_order():
    for marks in ([True, False], [False, True]):
        seen = play("R")
        seen.update(torch.tensor([0, 0]), torch.tensor(marks))
        assert seen.counts().events.tolist() == [1]
        assert seen.counts().presentations.tolist() == [2]


def test_an_update_costs_the_batch_not_the_data_set():
    operations = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            # A scatter in place returns the whole tensor and touches the batch.
            if isinstance(result, torch.Tensor) and not func._schema.is_mutable:
                operations.append(result.numel())
            return result

    seen = ExampleForgetting(100_000)
    with Watch():
        seen.update(torch.arange(8), torch.ones(8, dtype=torch.bool))
    assert max(operations) == 8


def test_training_goes_on_from_a_saved_state():
    updates = list(random_updates(20, 20))
    whole, first, second = (ExampleForgetting(20) for _ in range(3))
    for update in updates:
        whole.update(*update)
    for update in updates[:9]:
        first.update(*update)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for update in updates[9:]:
        second.update(*update)
    ours, theirs = whole.state_dict(), second.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # The saved copy does not move with the counter.
    assert not torch.equal(first.state_dict()["presentations"], theirs["presentations"])


@pytest.mark.parametrize(
    ("indices", "correct", "message"),
    [
        (torch.tensor([0, 5]), torch.tensor([True, True]), r"indices must be in \[0, 5\), got 0 to 5"),
        (torch.tensor([-1]), torch.tensor([True]), r"indices must be in \[0, 5\), got -1 to -1"),
        (torch.tensor([1.0]), torch.tensor([True]), r"integers of shape \(n,\), got torch\.float32"),
        (
            torch.tensor([[1]]),
            torch.tensor([[True]]),
            r"integers of shape \(n,\), got torch\.int64, \(1, 1\)",
        ),
        (torch.tensor([1, 2]), torch.tensor([True]), r"booleans of shape \(2,\), got torch\.bool, \(1,\)"),
        (torch.tensor([1]), torch.tensor([1]), r"booleans of shape \(1,\), got torch\.int64"),
    ],
)
def test_a_refused_update_changes_nothing(indices, correct, message):
    seen = ExampleForgetting(5)
    with pytest.raises(ValueError, match=message):
        seen.update(indices, correct)
    assert seen.counts().presentations.sum() == 0


def test_a_refused_state_changes_nothing():
    seen = play("RWR")
    with pytest.raises(ValueError, match="examples must be an integer >= 1, got 0"):
        ExampleForgetting(0)
    with pytest.raises(ValueError, match=r"state\['presentations'\] must have shape \(1,\), got \(2,\)"):
        seen.load_state_dict(ExampleForgetting(2).state_dict())
    state = ExampleForgetting(1).state_dict()
    del state["correct"]
    with pytest.raises(ValueError, match=r"state\['correct'\] must have shape \(1,\), got nothing"):
        seen.load_state_dict(state)
    assert seen.counts().events.tolist() == [1]
