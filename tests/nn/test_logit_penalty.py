from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from thalweg.nn import spectral_decoupling


def test_penalty_is_the_mean_square_of_the_distance_to_the_target():
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert spectral_decoupling(logits, 0.2).item() == pytest.approx(0.2 * (1 + 4 + 9 + 0.25) / 4)
    shifted = spectral_decoupling(logits[:, 0], 1.0, target=torch.tensor([2.5, 0.5]))
    assert shifted.item() == pytest.approx((1.5**2 + 2.5**2) / 2)


def test_centred_penalty_does_not_see_a_shift_of_all_classes():
    logits = torch.tensor([[1.0, -2.0, 4.0]])
    expected = 0.1 * (0 + 9 + 9) / 3
    for shift in (0.0, 50.0):
        assert spectral_decoupling(logits + shift, centred=True).item() == pytest.approx(expected)


def responses(strength: float, penalty: str) -> torch.Tensor:
    """Responses after gradient descent on the paper's two examples, singular values (strength, 2)."""
    root = math.sqrt(0.75)
    u = torch.tensor([[root, -0.5], [0.5, root]], dtype=torch.float64)
    angle = torch.tensor(0.7, dtype=torch.float64)
    v = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    design = u @ torch.diag(torch.tensor([strength, 2.0], dtype=torch.float64)) @ v
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(5000):
        logits = design @ theta
        if penalty == "weights":
            extra = 0.5 / 100 * theta.square().sum()
        else:
            extra = spectral_decoupling(logits, 0.1 / 100 * 2)  # a mean of two, where the paper sums
        loss = softplus(-logits).sum() + extra
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            theta -= 0.05 * gradient
    return u.T @ (design @ theta).detach()


def test_a_stronger_feature_starves_the_other_under_weight_decay_and_not_under_the_penalty():
    decayed = [responses(strength, "weights")[1].item() for strength in (2.0, 6.0)]
    assert decayed == pytest.approx([1.640, 1.180], abs=1e-3)
    decoupled = [responses(strength, "logits")[1].item() for strength in (2.0, 6.0)]
    assert decoupled == pytest.approx([1.708, 1.708], abs=1e-3)


def test_half_precision_is_widened_and_bad_arguments_are_named():
    assert spectral_decoupling(torch.full((2,), 300.0, dtype=torch.float16), 1.0).item() == 90000
    with pytest.raises(ValueError, match=r"coefficient must be in \[0, inf\), got -0\.1"):
        spectral_decoupling(torch.ones(2), -0.1)
    with pytest.raises(ValueError, match="at least one number"):
        spectral_decoupling(torch.ones(0, 3))
    with pytest.raises(ValueError, match="centred must be False for one logit"):
        spectral_decoupling(torch.ones(5, 1), centred=True)
