"""Where a method's step is known in closed form, ours is that."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thalweg import optim
from thalweg.optim.two_speeds import slow_decay


def steps_of(optimizer, p, gradients):
    """The change of ``p`` in every step, divided by -lr: the updates of the chain."""
    (group,) = optimizer.param_groups
    updates = []
    for g in gradients:
        before = p.detach().clone()
        p.grad = torch.as_tensor(g, dtype=p.dtype).expand(p.shape).clone()
        optimizer.step()
        updates.append((before - p.detach()) / group["lr"])
    return updates


def zeros(*shape):
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))


# AdEMAMix


def test_ademamix_tends_to_a_sign_as_the_slow_mean_fills():
    p = zeros(2)
    betas, gain = (0.9, 0.999, 0.99), 3.0
    gradient = torch.tensor([0.2, -7.0], dtype=torch.float64)
    optimizer = optim.AdEMAMix([p], betas=betas, slow_gain=gain, eps=0.0)
    for t, u in enumerate(steps_of(optimizer, p, [gradient] * 300), start=1):
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
    updates = steps_of(optimizer, p, [1.0, -2.0])
    assert set(optimizer.state[p]) == {"step", "two_speed.slow_mean", "two_speed.square"}
    assert updates[1].item() == pytest.approx(-2 / math.sqrt((0.9 * 0.1 + 0.1 * 4) / (1 - 0.81)), rel=1e-12)


# Grokfast


@pytest.mark.parametrize(("sign", "gain"), [(1, 3.0), (-1, 1 + 2 * 0.02 / 1.98)])
def test_grokfast_gain_of_constant_and_of_alternating_gradients(sign, gain):
    """1 + lambda, and 1 + lambda (1 - a) / (1 + a) = 1.0202 once the start is forgotten."""
    p = zeros(1)
    optimizer = optim.Descent([p], optim.slow_component(decay=0.98, gain=2.0))
    gradients = [float(sign**t) for t in range(1200)]
    gains = [u.item() / g for u, g in zip(steps_of(optimizer, p, gradients), gradients, strict=True)]
    assert gains[0] == pytest.approx(3.0, rel=1e-12)
    assert gains[-1] == pytest.approx(gain, rel=1e-8)
    assert gain == pytest.approx(3.0 if sign == 1 else 1.0202, abs=5e-6)


# Lion


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
    updates = steps_of(optimizer, p, [1.0, -0.05, -0.2, 0.0])
    # Mixes: 0.5; (0.1 - 0.05) / 2; (0.085 - 0.2) / 2; (0.0565) / 2.
    assert [u.item() for u in updates] == pytest.approx([1, 1, -1, 1])
    assert optimizer.state[p]["lion.mean"].item() == pytest.approx(
        0.9 * (0.9 * (0.09 - 0.005) - 0.02), rel=1e-12
    )


def test_lion_rests_where_gradient_and_momentum_are_zero():
    p = zeros(1)
    assert steps_of(optim.Lion([p]), p, [0.0])[0].item() == 0


# The orthogonal-gradient rule


def orthogonal_update(w, g, **arguments):
    p = nn.Parameter(w.clone())
    (u,) = steps_of(optim.Descent([p], optim.orthogonal(**arguments), lr=1.0), p, [g])
    return u


@pytest.mark.parametrize("shape", [(2,), (7, 3), (2, 3, 2, 2)])
def test_orthogonal_removes_the_radial_part_and_keeps_the_norm(shape):
    w, g = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    turned, cut = orthogonal_update(w, g), orthogonal_update(w, g, rescale=False)
    for u in (turned, cut):
        assert abs((u * w).sum()) < 1e-12 * u.norm() * w.norm()
    assert turned.norm().item() == pytest.approx(g.norm().item(), rel=1e-12)
    assert cut.norm() < g.norm()
    torch.testing.assert_close(turned / turned.norm(), cut / cut.norm())
    line = w.flatten() / w.norm()
    projector = torch.eye(w.numel(), dtype=torch.float64) - torch.outer(line, line)
    torch.testing.assert_close(cut.flatten(), projector @ g.flatten(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rescale", [True, False])
def test_orthogonal_spares_zero_weights_single_numbers_and_parallel_gradients(dtype, rescale):
    g = torch.randn(6, dtype=dtype)
    cases = [(torch.zeros(6, dtype=dtype), g), (3 * g, g), (-0.1 * g, g)]
    cases += [(torch.randn(1, dtype=dtype), torch.randn(1, dtype=dtype)) for _ in range(50)]
    for w, gradient in cases:
        p = nn.Parameter(w.clone())
        optimizer = optim.Descent([p], optim.orthogonal(rescale), optim.momentum(0.0))
        p.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(optimizer.state[p]["momentum.buffer"], gradient)


def test_orthogonal_survives_gradients_whose_squares_leave_float32():
    for scale in (1e30, 1e-30):
        w, g = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]) * scale
        p = nn.Parameter(w)
        p.grad = g
        optimizer = optim.Descent([p], optim.orthogonal(), optim.momentum(0.0), lr=0.0)
        optimizer.step()
        turned = optimizer.state[p]["momentum.buffer"] / scale
        torch.testing.assert_close(turned, torch.tensor([0.5, -0.5]) * math.sqrt(2))


# SPAM


def gradients_with_a_spike(spike):
    generator = torch.Generator().manual_seed(1)
    unit = [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(100)]
    return [*unit, torch.tensor([spike, 1.0, -spike, 0.5], dtype=torch.float64)]


def test_spam_cuts_a_spike_to_the_root_of_threshold_times_square():
    p = zeros(4)
    rows = gradients_with_a_spike(1e4)
    optimizer = optim.Descent([p], optim.clip_spikes(threshold=5000.0), optim.adam())
    steps_of(optimizer, p, rows[:-1])
    square, mean = (optimizer.state[p][f"adam.{slot}"].clone() for slot in ("square", "mean"))
    steps_of(optimizer, p, rows[-1:])
    seen = (optimizer.state[p]["adam.mean"] - 0.9 * mean) / 0.1
    limit = (5000 * square).sqrt()
    expected = torch.stack([limit[0], rows[-1][1], -limit[2], rows[-1][3]])
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9)
    growth = optimizer.state[p]["adam.square"] / square
    assert growth[0].item() == pytest.approx(0.999 + 0.001 * 5000, rel=1e-9)


def test_spam_lets_an_entry_with_no_past_through():
    p = zeros(2)
    optimizer = optim.Descent([p], optim.clip_spikes(threshold=2.0, grace=0), optim.adam())
    steps_of(optimizer, p, [torch.tensor([1.0, 0.0])] * 30 + [torch.tensor([1.0, 8.0])])
    assert optimizer.state[p]["adam.mean"][1].item() == pytest.approx(0.8, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "cut"), [(4, False), (5, True), (11, True), (12, False), (16, False), (17, True)]
)
def test_spam_waits_for_its_grace_at_the_start_and_after_each_reset(step, cut):
    """Grace 5, resets at 12, 24, ...: a spike at ``step`` (from 1) is cut where 5 steps have gone by."""
    p = zeros(1)
    optimizer = optim.Descent(
        [p], optim.clip_spikes(threshold=2.0, grace=5, reset_every=12), optim.momentum(0.0)
    )
    rows = [1.0] * (step - 1) + [1e3]
    steps_of(optimizer, p, rows)
    assert (optimizer.state[p]["momentum.buffer"].item() < 1e3) == cut


def test_spam_zeroes_its_moments_at_every_reset_and_keeps_its_clock():
    p = zeros(1)
    optimizer = optim.SPAM([p], reset_every=10, warmup=0, eps=0.0)
    updates = steps_of(optimizer, p, [1.0] * 10)
    assert optimizer.state[p]["step"].item() == 10
    assert optimizer.state[p]["adam.mean"].item() == pytest.approx(0.1, rel=1e-12)
    assert optimizer.state[p]["adam.square"].item() == pytest.approx(0.001, rel=1e-12)
    expected = (0.1 / (1 - 0.9**10)) / math.sqrt(0.001 / (1 - 0.999**10))
    assert updates[9].item() == pytest.approx(expected, rel=1e-9)
    assert updates[8].item() == pytest.approx(1.0, rel=1e-9)


def test_ease_in_rises_along_a_cosine_after_each_reset_only():
    p = zeros(1)
    optimizer = optim.Descent([p], optim.ease_in(every=10, steps=4), lr=1.0)
    scales = [u.item() for u in steps_of(optimizer, p, [1.0] * 25)]
    rise = [1 - 0.99 * (1 + math.cos(math.pi * s / 5)) / 2 for s in range(4)]
    assert rise[0] == pytest.approx(0.01)
    assert scales == pytest.approx([1.0] * 9 + rise + [1.0] * 6 + rise + [1.0] * 2)


def test_spike_clipping_borrows_the_preconditioners_square_or_keeps_its_own():
    p = zeros(3)
    for chain, kept in [
        ((optim.clip_spikes(), optim.adam()), {"adam.mean", "adam.square"}),
        (
            (optim.clip_spikes(), optim.two_speed()),
            {f"two_speed.{s}" for s in ("mean", "slow_mean", "square")},
        ),
        ((optim.clip_spikes(), optim.lion()), {"clip_spikes.square", "lion.mean"}),
        ((optim.adam(), optim.clip_spikes()), {"adam.mean", "adam.square", "clip_spikes.square"}),
        ((optim.clip_spikes(), optim.clip_norm(), optim.adam()), {"adam.mean", "adam.square"}),
    ]:
        optimizer = optim.Descent([p], *chain)
        steps_of(optimizer, p, [1.0])
        assert set(optimizer.state[p]) == {"step"} | kept


def test_spike_clipping_alone_tracks_the_square_of_what_it_lets_through():
    p = zeros(1)
    optimizer = optim.Descent([p], optim.clip_spikes(threshold=4.0, grace=0, square_decay=0.9), lr=1.0)
    updates = steps_of(optimizer, p, [1.0, 100.0, 0.5])
    first, second = 0.1, 0.9 * 0.1 + 0.1 * 4 * 0.1
    assert [u.item() for u in updates] == pytest.approx([1.0, math.sqrt(4 * first), 0.5])
    assert optimizer.state[p]["clip_spikes.square"].item() == pytest.approx(0.9 * second + 0.1 * 0.25)


# Clipping by norm


def three_groups(dtype):
    shapes = [(4, 3), (5,), (1,), (2, 2, 2, 2)]
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    return params, [{"params": params[:2]}, {"params": params[2:3], "lr": 0.3}, {"params": params[3:]}]


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_clip_norm_is_torchs_clipping_before_the_step_over_all_groups(scale):
    ours, our_groups = three_groups(torch.float64)
    theirs, their_groups = three_groups(torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    one = optim.Descent(our_groups, optim.clip_norm(1.0), optim.adam(eps=1e-3), lr=0.1)
    other = torch.optim.Adam(their_groups, lr=0.1, eps=1e-3)
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = scale * torch.randn_like(a)
            b.grad = a.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_clip_norm_takes_the_norm_of_whatever_reaches_it():
    """Behind Adam's first step, every entry is +-1: the norm over 9 + 16 entries is 5."""
    a, b = zeros(9), zeros(16)
    optimizer = optim.Descent([a, b], optim.adam(eps=0.0), optim.clip_norm(2.0), lr=1.0)
    a.grad, b.grad = torch.full_like(a, 3.0), torch.full_like(b, -0.1)
    optimizer.step()
    assert a.detach().tolist() == pytest.approx([-0.4] * 9, rel=1e-6)
    assert b.detach().tolist() == pytest.approx([0.4] * 16, rel=1e-6)


def test_clip_norm_keeps_huge_finite_gradients_finite():
    """Squares of 3e38 overflow float32, where torch's clipping makes the gradient zero."""
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 3e38)
    optim.Descent([p], optim.clip_norm(1.0), lr=1.0).step()
    assert p.detach().tolist() == pytest.approx([-0.5] * 4)
    torch.nn.utils.clip_grad_norm_([p], 1.0)
    assert p.grad.eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_norm_passes_a_gradient_that_is_not_finite_on_as_torch_does(bad):
    ours, theirs = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    ours.grad, theirs.grad = torch.tensor([bad, 1.0]), torch.tensor([bad, 1.0])
    torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    optim.Descent([ours], optim.clip_norm(1.0), lr=1.0).step()
    torch.testing.assert_close(-ours.detach(), theirs.grad, equal_nan=True)


# Weight decay by its place


def test_decay_before_the_preconditioner_is_l2_and_behind_it_decoupled():
    pairs = [
        ((optim.decay(0.3), optim.adam()), torch.optim.Adam),
        ((optim.adam(), optim.decay(0.3)), torch.optim.AdamW),
    ]
    for chain, peer in pairs:
        start = torch.randn(6, dtype=torch.float64)
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        one, other = optim.Descent([ours], *chain, lr=0.01), peer([theirs], lr=0.01, weight_decay=0.3)
        for _ in range(50):
            ours.grad = torch.randn(6, dtype=torch.float64)
            theirs.grad = ours.grad.clone()
            one.step()
            other.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_decoupled_decay_without_gradient_shrinks_geometrically_in_either_order():
    for after_step in (False, True):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optim.Descent([p], optim.adam(), optim.decay(0.5, after_step=after_step), lr=0.1)
        steps_of(optimizer, p, [0.0] * 20)
        assert p.item() == pytest.approx(0.95**20, rel=1e-12)


def test_decay_after_the_step_shrinks_the_step_too():
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    steps_of(optim.Descent([p], optim.decay(0.5, after_step=True), lr=0.1), p, [2.0])
    assert p.item() == pytest.approx((1 - 0.1 * 2.0) * (1 - 0.1 * 0.5), rel=1e-12)


# What a chain knows of itself


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 2 * 1.9),
        ({"momentum": 0.9, "nesterov": True}, 2 * 1.9 / 2.8),
        ({"momentum": 0.5, "dampening": 0.5}, 2 * 1.5 / 0.5),
        ({"dampening": 0.5}, 2.0),
    ],
)
def test_descent_converges_below_its_stability_limit_and_diverges_above(arguments, limit):
    for factor, settles in ((0.98, True), (1.02, False)):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optim.SGD([p], lr=0.1, **arguments)
        (group,) = optimizer.param_groups
        sharpness = factor * optimizer.stability_limit(group)
        assert optimizer.stability_limit(group) == pytest.approx(limit / 0.1)
        for _ in range(2000):
            p.grad = sharpness * p.detach()
            optimizer.step()
        assert (abs(p.item()) < 1e-3) == settles
        assert (abs(p.item()) > 1e3) != settles


def test_the_preconditioner_is_the_diagonal_that_multiplies_the_mean_gradient():
    p = zeros(3)
    optimizer = optim.AdamW([p], betas=(0.0, 0.9), eps=0.1)
    assert optimizer.preconditioner(p) is None
    gradient = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    (update,) = steps_of(optimizer, p, [gradient])
    torch.testing.assert_close(optimizer.preconditioner(p), 1 / (gradient.abs() + 0.1))
    torch.testing.assert_close(optimizer.preconditioner(p) * gradient, update)
    assert optim.SGD([p]).preconditioner(p) is None


def test_no_stability_limit_is_made_up():
    optimizer = optim.Lion([zeros(1)])
    with pytest.raises(ValueError, match="no stability limit is known for the chain"):
        optimizer.stability_limit(optimizer.param_groups[0])
