"""Writing weights in bfloat16."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thalweg import optim
from thalweg.optim._rounding import hashed_bits, round_stochastically


def rounded(values, seed=1, offset=0):
    return round_stochastically(values, torch.tensor(seed), torch.tensor(offset))


@pytest.mark.parametrize("value", [1.001, -1.001, 3.1e-5, -7e20, 2.0**-130 * 1.3])
def test_the_mean_of_stochastic_rounding_is_the_value(value):
    """Over 2^18 places, to 5 standard errors of a coin that falls on one of two neighbours."""
    x = torch.full((2**18,), value)
    y = rounded(x).double()
    low, high = y.min().item(), y.max().item()
    gap, value = high - low, x[0].double().item()
    share = (value - low) / gap
    error = gap * (share * (1 - share) / 2**18) ** 0.5
    assert y.unique().numel() == 2
    assert low < value < high
    assert torch.nextafter(torch.tensor(low).bfloat16(), torch.tensor(torch.inf).bfloat16()).item() == high
    assert y.mean().item() == pytest.approx(value, abs=5 * error)


def test_what_bfloat16_holds_is_left_alone():
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf, torch.nan]).bfloat16()
    for seed in range(50):
        assert torch.equal(rounded(x.float(), seed).view(torch.int16), x.view(torch.int16))


def test_noise_is_even_in_every_bit_and_unrelated_between_places_and_steps():
    n = 2**16
    bits = torch.stack([hashed_bits(torch.arange(n), torch.tensor(seed)) for seed in (1, 2, 65537 + 1)])
    assert bits.min() >= 0
    assert bits.max() < 2**16
    spread = 5 * 0.5 / n**0.5
    for place in range(16):
        signs = (bits >> place & 1).double() * 2 - 1
        assert signs.mean(1).abs().max() < 2 * spread
        assert (signs[0] * signs[1]).mean().abs() < 2 * spread
        assert (signs[0] * signs[2]).mean().abs() < 2 * spread
        assert (signs[:, 1:] * signs[:, :-1]).mean(1).abs().max() < 2 * spread


@given(st.integers(1, 2**31), st.integers(0, 1000))
def test_a_part_of_a_tensor_rounds_as_it_does_within_the_whole(seed, start):
    x = torch.linspace(-3, 3, 2000)
    assert torch.equal(rounded(x[start:], seed, start), rounded(x, seed)[start:])


def test_two_tensors_of_one_model_are_rounded_with_other_noise():
    a, b = (nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.001, rounding="stochastic")
    for _ in range(3):
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        optimizer.step()
    moved = torch.stack([a.detach() != 1, b.detach() != 1]).double()
    assert moved.mean(1).tolist() == pytest.approx([1 - (1 - 0.001 * 2**8) ** 3] * 2, abs=0.05)
    assert torch.corrcoef(moved)[0, 1].abs() < 0.08


def test_float32_weights_are_written_as_they_are_under_every_rounding():
    results = []
    for rounding in ("none", "stochastic", "kahan"):
        p = nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = optim.AdamW([p], rounding=rounding)
        for _ in range(5):
            p.grad = p.detach().sin()
            optimizer.step()
        results.append(p.detach())
        assert "kahan" not in optimizer.state[p]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_kahan_keeps_in_one_bfloat16_what_storing_loses():
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = optim.SGD([p], lr=2.0**-12, rounding="kahan")
    for step in range(1, 17):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p.item() + optimizer.state[p]["kahan"].item() == 1 - step * 2.0**-12
    assert p.item() == 1 - 2.0**-8
    assert optimizer.state[p]["kahan"].dtype == torch.bfloat16


def test_a_reset_of_the_state_does_not_forget_what_storing_lost():
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = optim.Descent(
        [p], optim.clip_spikes(reset_every=3, grace=1000), lr=2.0**-12, rounding="kahan"
    )
    for step in range(1, 12):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p.item() + optimizer.state[p]["kahan"].item() == 1 - step * 2.0**-12


@pytest.mark.parametrize("rounding", ["none", "stochastic", "kahan"])
def test_compiled_rounding_is_the_eager_one(rounding):
    """But for places where the last float32 bit decides, of which there are few."""
    weights = []
    for compile in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, 4096).bfloat16())
        optimizer = optim.Lion([p], lr=3e-4, weight_decay=0.1, rounding=rounding, compile=compile)
        for step in range(10):
            p.grad = torch.linspace(-3, 5, 4096).add(step).sin().bfloat16()
            optimizer.step()
        weights.append(p.detach())
    assert (weights[0] != weights[1]).double().mean() < 0.002
    torch.testing.assert_close(*weights, rtol=2.0**-7, atol=2.0**-10)
