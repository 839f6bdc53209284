from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize

from thalweg.probe import starvation_coefficients

ROOT = math.sqrt(0.75)
CARD = torch.tensor([[ROOT, -0.5], [0.5, ROOT]], dtype=torch.float64)


def features(n: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(
        torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )[0]


def trained(strengths: torch.Tensor, u: torch.Tensor, weight_decay: float) -> torch.Tensor:
    """Responses where a general minimiser of the mean loss over all the weights ends."""
    design = (u * strengths).numpy()
    n = len(u)

    def loss(theta):
        t = torch.tensor(theta, requires_grad=True)
        margins = torch.from_numpy(design) @ t
        value = torch.nn.functional.softplus(-margins).mean() + weight_decay / 2 * t.square().sum()
        value.backward()
        return value.item(), t.grad.numpy()

    found = minimize(
        loss, [0.0] * design.shape[1], jac=True, method="L-BFGS-B", tol=1e-15, options={"maxls": 60}
    )
    assert n == len(design)
    return u.T @ torch.from_numpy(design @ found.x)


@pytest.mark.parametrize(("weight_decay", "n"), [(1e-3, 5), (0.1, 5), (1e-2, 12)])
def test_responses_are_where_training_ends(weight_decay, n):
    strengths, u = torch.linspace(4, 0.5, n, dtype=torch.float64), features(n)
    found = starvation_coefficients(strengths, u, weight_decay=weight_decay)
    torch.testing.assert_close(found.responses, trained(strengths, u, weight_decay), rtol=1e-4, atol=1e-4)


def test_the_stationarity_of_the_dual_holds_to_rounding():
    n, weight_decay = 20, 1e-5
    strengths, u = torch.logspace(2, -3, n, dtype=torch.float64), features(n)
    z = starvation_coefficients(strengths, u, weight_decay=weight_decay).responses
    alpha = torch.sigmoid(-(u @ z))
    torch.testing.assert_close(
        z, strengths.square() * (u.T @ alpha) / (n * weight_decay), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1])
def test_coefficients_are_the_differences_of_two_ends_of_training(weight_decay):
    strengths, u = torch.tensor([3.0, 2.0, 1.5, 0.3], dtype=torch.float64), features(4, seed=1)
    found = starvation_coefficients(strengths, u, weight_decay=weight_decay)
    step = 1e-4
    for i in range(4):
        ends = []
        for sign in (1, -1):
            moved = strengths.clone()
            moved[i] *= math.exp(sign * step / 2)  # half in the strength is one in its square
            ends.append(starvation_coefficients(moved, u, weight_decay=weight_decay).responses.abs())
        expected = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(found.coefficients[:, i], expected, rtol=1e-5, atol=1e-7)
    off = found.coefficients - found.coefficients.diag().diag()
    torch.testing.assert_close(found.starvation, off.clamp_max(0).sum(1))


def test_a_stronger_feature_takes_the_response_of_the_weaker():
    responses, coefficients = [], []
    for strength in (2.0, 3.0, 4.0, 5.0, 6.0):
        found = starvation_coefficients(
            torch.tensor([strength, 2.0]), CARD, weight_decay=0.005
        )  # 0.01/2 |theta|² beside a sum of two losses
        responses.append(found.responses[1].item())
        coefficients.append(found.coefficients[1, 0].item())
    # The published numbers after 5000 steps are 1.640, 1.583, 1.466, 1.327, 1.180.
    assert responses == pytest.approx([1.640, 1.583, 1.466, 1.327, 1.180], rel=0.05)
    assert responses == sorted(responses, reverse=True)
    assert all(coefficient < 0 for coefficient in coefficients[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": 0.0}, r"weight_decay must be in \(0, inf\), got 0\.0"),
        ({"strengths": torch.ones(3)}, r"strengths \(k,\), got \(2, 2\) and \(3,\)"),
        ({"strengths": torch.tensor([1.0, -1.0])}, "strengths must be finite and not negative"),
        ({"features": torch.ones(2, 2)}, "features must have orthonormal columns"),
    ],
)
def test_starvation_coefficients_refuse(change, message):
    arguments = {"strengths": torch.ones(2), "features": CARD, "weight_decay": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        starvation_coefficients(**arguments)
