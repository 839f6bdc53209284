"""Closed forms: AdEMAMix's limits, Grokfast's gains, Lion's box."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import updates_of, zeros

from thalweg import optim
from thalweg.optim.two_speeds import slow_decay


def test_ademamix_tends_to_a_sign_as_the_slow_mean_fills():
    p = zeros(2)
    betas, gain = (0.9, 0.999, 0.99), 3.0
    gradient = torch.tensor([0.2, -7.0], dtype=torch.float64)
    optimizer = optim.AdEMAMix([p], betas=betas, slow_gain=gain, eps=0.0)
    for t, u in enumerate(updates_of(optimizer, p, [gradient] * 300), start=1):
        expected = (1 + gain * (1 - betas[2] ** t)) * gradient.sign()
        torch.testing.assert_close(u, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("share", "value"), [(0.1, 0.99901), (0.25, 0.99960), (0.5, 0.99980), (1.0, 0.9999)])
def test_slow_decay_grows_linearly_in_half_life(share, value):
    assert slow_decay(1000 * share, 0.9, 0.9999, 1000) == pytest.approx(value, abs=2e-5)


@given(st.floats(0.01, 1), st.floats(0.5, 0.99), st.floats(0.995, 0.99999))
def test_slow_decay_interpolates_the_logarithms_reciprocals(share, start, end):
    half_life = 1 / math.log(slow_decay(share * 500, start, end, 500))
    assert half_life == pytest.approx((1 - share) / math.log(start) + share / math.log(end), rel=1e-9)


def test_slow_decay_without_warmup_or_past_it_is_the_final_one():
    assert slow_decay(1, 0.9, 0.9999, None) == slow_decay(100, 0.9, 0.9999, 100) == 0.9999
    assert slow_decay(10**6, 0.9, 0.9999, 100) == 0.9999


def test_ademamix_without_fast_momentum_stores_no_mean_and_uses_the_gradient():
    p = zeros(1)
    optimizer = optim.AdEMAMix([p], betas=(0.0, 0.9, 0.99), slow_gain=0.0, eps=0.0)
    updates = updates_of(optimizer, p, [1.0, -2.0])
    assert set(optimizer.state[p]) == {"step", "two_speed.slow_mean", "two_speed.square"}
    assert updates[1].item() == pytest.approx(-2 / math.sqrt((0.9 * 0.1 + 0.1 * 4) / (1 - 0.81)), rel=1e-12)


@pytest.mark.parametrize(("sign", "gain"), [(1, 3.0), (-1, 1 + 2 * 0.02 / 1.98)])
def test_grokfast_gain_of_constant_and_of_alternating_gradients(sign, gain):
    """1 + lambda, and 1 + lambda (1 - a) / (1 + a) = 1.0202 once the start is forgotten."""
    p = zeros(1)
    optimizer = optim.Descent([p], optim.slow_component(decay=0.98, gain=2.0))
    gradients = [float(sign**t) for t in range(1200)]
    gains = [u.item() / g for u, g in zip(updates_of(optimizer, p, gradients), gradients, strict=True)]
    assert gains[0] == pytest.approx(3.0, rel=1e-12)
    assert gains[-1] == pytest.approx(gain, rel=1e-8)
    assert gain == pytest.approx(3.0 if sign == 1 else 1.0202, abs=5e-6)


@pytest.mark.parametrize("lr", [0.01, 0.003])
def test_lion_contracts_to_its_box_and_stops_at_the_clipped_minimum(lr):
    """Distance to |w| <= 1/wd shrinks by 1 - lr wd a step, whatever the gradient; the end is clip(a)."""
    target = 3 * torch.randn(50, dtype=torch.float64)
    w = nn.Parameter(torch.full((50,), 10.0, dtype=torch.float64))
    optimizer = optim.Lion([w], lr=lr, weight_decay=1.0)
    outside = [9.0]
    for _ in range(int(12 / lr)):
        w.grad = w.detach() - target
        optimizer.step()
        outside.append((w.detach().abs() - 1).max().item())
    shrinks = [b / a for a, b in itertools.pairwise(outside) if a > 1e-3]
    assert max(shrinks) <= 1 - lr + 1e-9
    assert max(shrinks) == pytest.approx(1 - lr, abs=1e-9)
    assert (w.detach() - target.clamp(-1, 1)).abs().max() < 1.2 * lr
    assert w.detach().abs().max() < 1 + 1e-4


def test_lion_halves_the_box_with_twice_the_decay_and_has_none_without():
    for weight_decay, end in ((2.0, 0.5), (0.0, 5.0)):
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optim.Lion([w], lr=0.01, weight_decay=weight_decay)
        for _ in range(1000):
            w.grad = w.detach() - 5.0
            optimizer.step()
        assert w.item() == pytest.approx(end, abs=0.03)


def test_lion_mixes_first_and_remembers_afterwards():
    p = zeros(1)
    optimizer = optim.Lion([p], betas=(0.5, 0.9))
    updates = updates_of(optimizer, p, [1.0, -0.05, -0.2, 0.0])
    # Mixes: 0.5; (0.1 - 0.05) / 2; (0.085 - 0.2) / 2; (0.0565) / 2.
    assert [u.item() for u in updates] == pytest.approx([1, 1, -1, 1])
    assert optimizer.state[p]["lion.mean"].item() == pytest.approx(
        0.9 * (0.9 * (0.09 - 0.005) - 0.02), rel=1e-12
    )


def test_lion_rests_where_gradient_and_momentum_are_zero():
    p = zeros(1)
    assert updates_of(optim.Lion([p]), p, [0.0])[0].item() == 0
