"""Every part says how the length of its update answers to that of the gradients, and so it does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from thalweg import optim
from thalweg._core.discover import modules
from thalweg.optim.transform import PARTS, Transform

modules("thalweg.optim")
OTHERS = {
    "normalized": lambda: optim.normalized(optim.adam()),
    "project": lambda: optim.project(rank=2, inner=optim.adam()),
    "project, heavy ball": lambda: optim.project(rank=2, inner=optim.momentum()),
    "quantized": lambda: optim.quantized(optim.momentum(), smallest=1, block=8),
    "split, both": lambda: optim.split(inner=optim.momentum(), rest=optim.momentum(0.0)),
    "lion, l2": lambda: optim.lion(kappa="l2"),
}
MAKERS = {name: make for name, make in PARTS.items() if name not in ("normalized", "project", "quantized")}
MAKERS |= OTHERS
C = 16.0


def moved(link: Transform, c: float) -> Tensor:
    """Half of how far twelve small steps end from those with opposite gradients, all c times as long."""
    ends = []
    for sign in (1, -1):
        source = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(4, 6, generator=source, dtype=torch.float64))
        optimizer = optim.Descent([p], link, lr=1e-6)
        for _ in range(12):
            # Small enough for every bound, and large beside what is added to a denominator.
            p.grad = sign * c * 1e-5 * torch.randn(4, 6, generator=source, dtype=torch.float64)
            optimizer.step()
        ends.append(p.detach())
    return (ends[0] - ends[1]) / 2


@pytest.mark.parametrize("name", MAKERS)
def test_a_part_declares_how_its_length_answers_to_the_gradients(name):
    link = MAKERS[name]()
    measured = math.log(moved(link, C).norm() / moved(link, 1.0).norm(), C)
    assert link.degree in (0, 1)
    assert measured == pytest.approx(link.degree, abs=0.05)


def test_what_is_neither_declares_none():
    assert optim.lion(kappa="huber").degree is None
    assert optim.split(inner=optim.momentum(), rest=optim.sign()).degree is None
