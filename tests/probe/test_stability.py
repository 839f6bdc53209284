"""Every limit is checked by running the real optimizer on a quadratic just below and just above it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from thalweg import optim
from thalweg.probe import stability_limit

LR = 0.1


def freeze(optimizer: Optimizer, p: torch.Tensor, names: tuple[str, ...]) -> None:
    """Fix the second moment at 1: far above any squared gradient of this test, and after many steps."""
    for name in ("exp_avg", "exp_avg_sq", "square_avg"):
        if name in names:
            optimizer.state[p][name] = torch.ones_like(p) if "sq" in name else torch.zeros_like(p)
    optimizer.state[p]["step"] = torch.tensor(1e12)


def growth(make, curvature: float, names: tuple[str, ...], steps: int = 400) -> float:
    """Size of the last iterates over that of the first, on ``curvature / 2 * w**2``."""
    w = torch.tensor([1e-12], dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    if names:
        freeze(optimizer, w, names)
    sizes = []
    for _ in range(steps):
        w.grad = curvature * w.detach()
        optimizer.step()
        sizes.append(abs(w.item()))
    return max(sizes[-20:]) / max(sizes[:20])


ADAM = ("exp_avg", "exp_avg_sq")
SLOW = 1 - 1e-10
CASES = {
    "gradient descent": (lambda p: SGD(p, lr=LR), 2 / LR, ()),
    "heavy ball": (lambda p: SGD(p, lr=LR, momentum=0.9), 3.8 / LR, ()),
    "weak heavy ball": (lambda p: SGD(p, lr=LR, momentum=0.5), 3 / LR, ()),
    "dampened": (lambda p: SGD(p, lr=LR, momentum=0.9, dampening=0.9), 38 / LR, ()),
    "Nesterov": (lambda p: SGD(p, lr=LR, momentum=0.9, nesterov=True), 3.8 / 2.8 / LR, ()),
    "Adam": (lambda p: Adam(p, lr=LR, betas=(0.9, SLOW), eps=0), 38 / LR, ADAM),
    "Adam without momentum": (lambda p: Adam(p, lr=LR, betas=(0.0, SLOW), eps=0), 2 / LR, ADAM),
    "AdamW": (lambda p: AdamW(p, lr=LR, betas=(0.8, SLOW), eps=0, weight_decay=0), 18 / LR, ADAM),
    "RMSprop": (lambda p: RMSprop(p, lr=LR, alpha=SLOW, eps=0), 2 / LR, ("square_avg",)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_limit_is_the_closed_form_and_parts_shrinking_from_growing(name):
    make, expected, frozen = CASES[name]
    limit = stability_limit(make([torch.zeros(1, requires_grad=True)]))
    assert limit == pytest.approx(expected)
    assert growth(make, 0.99 * limit, frozen) < 0.9
    assert growth(make, 1.01 * limit, frozen) > 1.1


def test_rmsprop_with_momentum_is_a_heavy_ball():
    # Its buffer starts at zero, so the state is completed by hand.
    def make(params):
        optimizer = RMSprop(params, lr=LR, alpha=SLOW, eps=0, momentum=0.5)
        optimizer.state[params[0]]["momentum_buffer"] = torch.zeros_like(params[0])
        return optimizer

    limit = stability_limit(make([torch.zeros(1, requires_grad=True)]))
    assert limit == pytest.approx(3 / LR)
    assert growth(make, 0.99 * limit, ("square_avg",)) < 0.9
    assert growth(make, 1.01 * limit, ("square_avg",)) > 1.1


def test_weight_decay_moves_the_limit_as_documented():
    decay = 2.0
    below = stability_limit(SGD([torch.zeros(1, requires_grad=True)], lr=LR, momentum=0.9)) - decay
    assert growth(lambda p: SGD(p, lr=LR, momentum=0.9, weight_decay=decay), 0.99 * below, ()) < 0.9
    assert growth(lambda p: SGD(p, lr=LR, momentum=0.9, weight_decay=decay), 1.01 * below, ()) > 1.1

    def decoupled(p):
        return AdamW(p, lr=LR, betas=(0.9, SLOW), eps=0, weight_decay=decay)

    limit = stability_limit(decoupled([torch.zeros(1, requires_grad=True)])) * (1 - LR * decay / 2)
    assert growth(decoupled, 0.99 * limit, ADAM) < 0.9
    assert growth(decoupled, 1.01 * limit, ADAM) > 1.1


def test_group_is_a_group_or_its_index_and_rates_may_be_tensors():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": torch.tensor(0.25)}], lr=1.0)
    assert stability_limit(optimizer) == 4
    assert stability_limit(optimizer, 1) == stability_limit(optimizer, optimizer.param_groups[1]) == 8


def test_rate_zero_has_no_limit():
    assert stability_limit(SGD([torch.zeros(1, requires_grad=True)], lr=0.0)) == math.inf


def test_an_optimizer_with_the_method_is_asked():
    class Knows(torch.optim.Adagrad):
        def stability_limit(self, group):
            return 7 / group["lr"]

    assert stability_limit(Knows([torch.zeros(1, requires_grad=True)], lr=0.5)) == 14


SAM_CASES = {
    "gradient descent": (lambda p: SGD(p, lr=LR), 2 / LR),
    "heavy ball": (lambda p: SGD(p, lr=LR, momentum=0.9), 3.8 / LR),
    "a chain": (lambda p: optim.Descent(p, optim.momentum(0.9), lr=LR), 3.8 / LR),
}


@pytest.mark.parametrize("name", sorted(SAM_CASES))
@pytest.mark.parametrize("radius", [0.0, 0.05, 0.5])
def test_the_limit_of_sam_parts_shrinking_from_growing(name, radius):
    inner, of_inner = SAM_CASES[name]

    def run(curvature):
        w = torch.tensor([1e-12], dtype=torch.float64, requires_grad=True)
        sam = optim.SAM(inner([w]), radius, normalized=False)

        def closure():
            sam.zero_grad()
            loss = (curvature / 2 * w.square()).sum()
            loss.backward()
            return loss

        sizes = []
        for _ in range(400):
            sam.step(closure)
            sizes.append(abs(w.item()))
        return stability_limit(sam), max(sizes[-20:]) / max(sizes[:20])

    limit, _ = run(1.0)
    # arXiv 2302.08692: a curvature is seen as itself times one plus the radius times itself.
    assert limit * (1 + radius * limit) == pytest.approx(of_inner)
    assert run(0.99 * limit)[1] < 0.9
    assert run(1.01 * limit)[1] > 1.1


def test_a_limit_of_sam_that_moves_is_not_made_up():
    w = torch.zeros(1, requires_grad=True)
    for sam in (
        optim.SAM(SGD([w], lr=LR)),
        optim.SAM(SGD([w], lr=LR), adaptive=True, normalized=False),
        optim.SAM(Adam([w], lr=LR), normalized=False),
        optim.SAM(optim.Descent([w], optim.adam(), lr=LR), normalized=False),
    ):
        with pytest.raises(ValueError, match="SAM"):
            stability_limit(sam)
    assert stability_limit(optim.SAM(SGD([w], lr=0.0), normalized=False)) == math.inf


def test_stability_limit_refuses():
    w = [torch.zeros(1, requires_grad=True)]
    with pytest.raises(ValueError, match=r"torch\.optim\.SGD, Adam, AdamW and RMSprop.*got Adagrad"):
        stability_limit(torch.optim.Adagrad(w))
    with pytest.raises(ValueError, match=r"index in \[0, 0\], got 1"):
        stability_limit(SGD(w, lr=0.1), 1)
    with pytest.raises(ValueError, match="maximize=True"):
        stability_limit(SGD(w, lr=0.1, maximize=True))
