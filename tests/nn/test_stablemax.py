from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import thalweg.nn
from thalweg.nn import StableMax, stablemax_cross_entropy


def explicit(logits: list[float], target: int) -> float:
    s = [x + 1 if x >= 0 else 1 / (1 - x) for x in logits]
    return -math.log(s[target] / sum(s))


def test_loss_is_the_formula_on_both_branches():
    rows = [[0.0, 1.5, -2.0], [-7.0, -0.5, 0.25], [1e3, -1e3, 0.0]]
    targets = [0, 1, 1]
    expected = [explicit(row, target) for row, target in zip(rows, targets, strict=True)]
    logits, wanted = torch.tensor(rows, dtype=torch.float64), torch.tensor(targets)
    each = stablemax_cross_entropy(logits, wanted, reduction="none")
    assert each.tolist() == pytest.approx(expected, rel=1e-12)
    assert StableMax()(logits, wanted).item() == pytest.approx(sum(expected) / 3, rel=1e-12)
    assert StableMax(reduction="sum")(logits, wanted).item() == pytest.approx(sum(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("margin", "cross_entropy", "stablemax"), [(20, -1.2e-7, -4.0e-2), (100, 0, -5.2e-3), (1000, 0, -1.0e-4)]
)
def test_gradient_survives_a_margin_at_which_that_of_cross_entropy_is_gone(margin, cross_entropy, stablemax):
    logits = torch.zeros(1, 113)
    logits[0, 0] = margin
    gradients = []
    for loss in (nn.CrossEntropyLoss(), StableMax(), StableMax(dtype=None)):
        leaf = logits.clone().requires_grad_()
        loss(leaf, torch.tensor([0])).backward()
        gradients.append(leaf.grad[0, 0].item())
    assert gradients[0] == pytest.approx(cross_entropy, rel=0.05, abs=1e-12)
    exact = 1 / (margin + 113) - 1 / (margin + 1)
    assert exact == pytest.approx(stablemax, rel=0.02)
    assert gradients[1:] == pytest.approx([exact, exact], rel=1e-5)


def test_gradient_is_that_of_the_formula_also_at_zero_and_at_one():
    # s'(0) = 1 from both sides, and 1 / (1 - x) must not be evaluated at x = 1.
    logits = torch.tensor([[0.0, 1.0, -3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    stablemax_cross_entropy(logits, torch.tensor([3])).backward()
    s, slope = [1, 2, 1 / 4, 1], [1, 1, 1 / 16, 1]
    expected = [d / sum(s) for d in slope]
    expected[3] -= 1
    assert logits.grad[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    logits = (3 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda z: stablemax_cross_entropy(z, targets), (logits,))


def test_a_shift_changes_the_loss_unlike_that_of_softmax():
    logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    assert stablemax_cross_entropy(logits, targets).item() == pytest.approx(math.log(4 / 3))
    assert stablemax_cross_entropy(logits + 6, targets).item() == pytest.approx(math.log(16 / 9))


def test_classes_come_last_and_ignored_positions_do_not_count():
    logits = torch.tensor([[[2.0, 0.0], [5.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    targets = torch.tensor([[0, -100], [1, 1]])
    each = stablemax_cross_entropy(logits, targets, reduction="none")
    assert each.shape == (2, 2)
    assert each.flatten().tolist() == pytest.approx([math.log(4 / 3), 0, math.log(2), math.log(3 / 2)])
    mean = stablemax_cross_entropy(logits, targets).item()
    assert mean == pytest.approx(math.log(4 / 3 * 2 * 3 / 2) / 3)


def test_a_masked_class_has_no_probability_and_no_gradient():
    logits = torch.tensor([[2.0, 0.0, -math.inf]], requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert logits.grad[0].tolist() == pytest.approx([1 / 4 - 1 / 3, 1 / 4, 0])


def test_computation_is_in_float64_unless_told_otherwise():
    logits, targets = torch.zeros(1, 3), torch.tensor([0])
    assert stablemax_cross_entropy(logits, targets).dtype is torch.float64
    assert stablemax_cross_entropy(logits, targets, dtype=None).dtype is torch.float32


def test_stablemax_refuses():
    with pytest.raises(ValueError, match=r"got \(3,\) for logits \(2, 3\)"):
        stablemax_cross_entropy(torch.ones(2, 3), torch.ones(3).long())
    for wrong in (torch.float32, torch.int32, torch.bool):
        with pytest.raises(ValueError, match=rf"targets must be class indices of torch\.int64, got {wrong}"):
            stablemax_cross_entropy(torch.ones(3, 2), torch.ones(3, dtype=wrong))
    with pytest.raises(ValueError, match=r"one of mean, none, sum; got 'means' \(did you mean"):
        StableMax(reduction="means")
    with pytest.raises(ValueError, match=r"floating type or None, got torch\.int64"):
        stablemax_cross_entropy(torch.ones(1, 2), torch.tensor([0]), dtype=torch.int64)


def test_room_lists_the_loss():
    assert {"StableMax", "stablemax_cross_entropy"} <= set(dir(thalweg.nn))
