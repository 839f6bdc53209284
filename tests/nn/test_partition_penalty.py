from __future__ import annotations

import math

import pytest
import torch

from thalweg.nn import z_loss


def test_z_loss_is_the_mean_squared_log_of_the_normaliser():
    rows = [[0.0, 1.5, -2.0], [7.0, -0.5, 0.25]]
    log_z = [math.log(sum(math.exp(x) for x in row)) for row in rows]
    expected = 0.3 * sum(x**2 for x in log_z) / 2
    assert z_loss(torch.tensor(rows, dtype=torch.float64), 0.3).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_pulls_all_logits_towards_a_normaliser_of_one():
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    z_loss(logits, 0.5).backward()
    log_z = logits.logsumexp(-1).item()
    assert logits.grad[0].tolist() == pytest.approx((log_z * logits.softmax(-1))[0].tolist(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: z_loss(z, 0.5), (logits,))


def test_a_shift_that_cross_entropy_does_not_see_is_punished():
    logits = torch.tensor([[1.0, -1.0]]).log_softmax(-1)
    assert z_loss(logits, 1.0).item() == pytest.approx(0, abs=1e-12)
    assert z_loss(logits + 3, 1.0).item() == pytest.approx(9)


def test_default_coefficient_and_ignored_positions():
    logits = torch.zeros(2, 3, 5)
    logits[1, 2] = 100.0
    targets = torch.zeros(2, 3, dtype=torch.int64)
    targets[1, 2] = -100
    assert z_loss(logits, targets=targets).item() == pytest.approx(1e-4 * math.log(5) ** 2)
    assert z_loss(logits, targets=torch.full((2, 3), -100)).item() == 0


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 3000, dtype=torch.bfloat16)
    assert z_loss(logits, 1.0).item() == pytest.approx(math.log(3000) ** 2, rel=1e-6)
    assert z_loss(logits).dtype is torch.float32


def test_z_loss_refuses():
    with pytest.raises(ValueError, match=r"coefficient must be in \[0, inf\), got -1"):
        z_loss(torch.ones(2, 3), -1)
    with pytest.raises(ValueError, match=r"\(\.\.\., classes\), got \(2, 0\)"):
        z_loss(torch.ones(2, 0))
    with pytest.raises(ValueError, match=r"got \(3,\) for logits \(2, 3\)"):
        z_loss(torch.ones(2, 3), targets=torch.ones(3).long())
