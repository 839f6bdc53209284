"""Softmax collapse counts what gives no gradient, on enough examples to speak of a share."""

import pytest
import torch

from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.softmax_collapse import SoftmaxCollapse
from thalweg.watch.sensors.softmax import collapsed


def told(batches):
    """Findings of readings of batches of logits and targets, one a step."""
    rule, found = SoftmaxCollapse({"optimizer": "Adam", "lr": 1e-3}), []
    for step, (logits, targets) in enumerate(batches, 1):
        (raw,) = collapsed.read(Moment(step, {}, None, output=logits, targets=targets))
        extra = {name: float(value) for name, value in raw.extra.items()}
        found += rule.see(Reading(step, raw.name, float(raw.value), {}, extra))
    return found


def sure(answers, classes=4, height=1e3):
    return height * torch.nn.functional.one_hot(torch.tensor(answers), classes).float()


def test_an_example_that_is_surely_wrong_still_gives_its_gradient():
    logits, targets = sure([0] * 40), torch.tensor([0] * 10 + [1] * 30)
    logits.requires_grad_()
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    still = (logits.grad.abs().sum(1) > 0).double().mean().item()
    (found,) = told([(logits.detach(), targets)])
    assert found.evidence["collapsed"] == pytest.approx(1 - still) == 0.25
    assert found.message.startswith("25%")
    assert told([(sure([0] * 40), torch.ones(40, dtype=torch.int64))]) == []


def test_a_batch_of_one_is_no_share_of_the_examples():
    easy, hard = (sure([0]), torch.tensor([0])), (torch.zeros(1, 4), torch.tensor([0]))
    assert told([hard, easy, hard, hard] * 3) == []
    (found,) = told([hard, easy, hard, hard] * 10)
    assert (found.step, found.evidence["collapsed"], found.severity) == (20, 0.25, "info")


def test_large_batches_are_judged_one_by_one():
    spread = torch.zeros(64, 4), torch.zeros(64, dtype=torch.int64)
    assert [one.step for one in told([spread, spread, (sure([0] * 64), spread[1])])] == [3]
