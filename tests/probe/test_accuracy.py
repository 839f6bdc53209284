from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import accuracy_gap


def onehot(classes: list[int], width: int = 3) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(classes), width).float()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_gap_is_the_difference_of_shares_whatever_the_batch_size(batch_size):
    train = (onehot([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0]))
    test = (onehot([0, 1, 2, 0, 1]), torch.tensor([0, 0, 0, 0, 0]))
    found = accuracy_gap(nn.Identity(), train, test, batch_size=batch_size)
    assert (found.train, found.test, found.gap) == (1.0, 0.4, 0.6)


def test_token_models_are_counted_by_position_without_the_ignored():
    inputs = onehot([0, 1, 2, 0]).view(2, 2, 3)
    targets = torch.tensor([[0, 1], [-100, 1]])
    found = accuracy_gap(nn.Identity(), (inputs, targets), (inputs, targets.clamp_min(0)), batch_size=1)
    assert (found.train, found.test) == (2 / 3, 0.5)


def test_dropout_is_off_and_flags_return():
    model = nn.Sequential(nn.Dropout(0.99), nn.BatchNorm1d(3))
    model.train()
    model[1].eval()
    pair = (onehot([0, 1, 2] * 20), torch.tensor([0, 1, 2] * 20))
    assert accuracy_gap(model, pair, pair).train == 1
    assert [m.training for m in model] == [True, False]
    assert model[1].num_batches_tracked == 0


GOOD = (torch.eye(3), torch.arange(3))


@pytest.mark.parametrize(
    ("train", "test", "batch_size", "message"),
    [
        ((torch.eye(3), torch.arange(2)), GOOD, 2, r"train must hold as many inputs .* \(3, 3\) and \(2,\)"),
        (GOOD, (torch.ones(0, 3), torch.ones(0)), 2, "test must hold as many inputs as targets"),
        (GOOD, (torch.eye(3), torch.full((3,), -100)), 2, "test targets must hold one that counts"),
        (GOOD, (torch.eye(3), torch.zeros(3, 1).long()), 2, r"test logits of shape \(2, 1\) \+ \(classes,\)"),
        (GOOD, (torch.full((3, 3), torch.nan), torch.arange(3)), 2, "finite test logits"),
        (GOOD, GOOD, 0, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_accuracy_gap_refuses(train, test, batch_size, message):
    with pytest.raises(ValueError, match=message):
        accuracy_gap(nn.Identity(), train, test, batch_size=batch_size)


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (torch.tensor([0, 3, 1]), "got 3"),
        (torch.tensor([0, -1, 1]), "got -1"),
        (torch.tensor([0.0, 0.25, 1.0]), "got 0.25"),
        (torch.tensor([0.0, math.nan, 1.0]), "got nan"),
    ],
)
def test_targets_that_are_no_classes_are_refused_and_not_counted_as_wrong(targets, got):
    model, x = nn.Linear(2, 3), torch.zeros(3, 2)
    good = torch.tensor([0, 2, -100])
    message = rf"test targets must be classes in \[0, 3\) or ignore_index=-100, {got}"
    with pytest.raises(ValueError, match=message):
        accuracy_gap(model, (x, good), (x, targets))
    assert accuracy_gap(model, (x, good), (x, good.float())).gap == 0
