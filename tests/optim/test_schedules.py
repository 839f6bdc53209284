"""Schedules: factors at the steps where they are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg import optim


def test_warm_restarts_happen_at_100_300_and_700():
    factor = optim.warm_restarts(first=100, growth=2)
    values = [factor(step) for step in range(1500)]
    jumps = [step for step in range(1, 1500) if values[step] > values[step - 1]]
    assert jumps == [100, 300, 700]
    assert [values[step] for step in (0, 100, 300, 700)] == [1.0] * 4
    assert [values[step] for step in (50, 200, 500, 1100)] == pytest.approx([0.5] * 4)
    assert all(values[step - 1] < 3e-4 for step in jumps)


def test_warm_restarts_equal_torchs():
    for first, growth in ((5, 1), (4, 2), (3, 3)):
        p = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([p], lr=0.5)
        peer = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, growth, eta_min=0.05)
        ours = optim.warm_restarts(first, growth, end=0.1)
        for step in range(60):
            assert 0.5 * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            peer.step()


@given(st.integers(1, 50), st.integers(1, 4), st.integers(0, 10**6))
def test_warm_restarts_stay_between_end_and_one(first, growth, step):
    assert 0.2 <= optim.warm_restarts(first, growth, end=0.2)(step) <= 1.0


def test_warm_restarts_do_not_drift_late_in_a_long_run():
    assert optim.warm_restarts(3)(3 * 10**12) == 1.0


def test_one_cycle_starts_peaks_falls_and_ends_where_the_recipe_says():
    factor = optim.one_cycle(steps=1000, start=0.1, tail=0.1, end=0.001)
    values = [factor(step) for step in range(1001)]
    assert values[0] == pytest.approx(0.1)
    assert max(range(1001), key=values.__getitem__) == 450
    assert values[450] == pytest.approx(1.0)
    assert values[900] == pytest.approx(0.1)
    assert values[225] == values[675] == pytest.approx(0.55)
    assert values[950] == pytest.approx((0.1 + 0.001) / 2)
    assert values[1000] == factor(5000) == pytest.approx(0.001)


def test_one_cycle_without_a_tail_is_the_triangle_of_the_released_solvers():
    """base + (max - base) max(0, 1 - |t / step - 1|) for base 0.1, max 3, step 5000."""
    factor = optim.one_cycle(steps=10000, start=0.1 / 3, tail=0.0)
    for t in range(0, 10001, 250):
        assert 3 * factor(t) == pytest.approx(0.1 + 2.9 * max(0, 1 - abs(t / 5000 - 1)))


@pytest.mark.parametrize(
    ("schedule", "middle"), [(optim.cosine, 0.5), (optim.linear_decay, 0.5)], ids=["cosine", "linear"]
)
def test_decay_with_warmup_at_its_corners(schedule, middle):
    factor = schedule(steps=110, warmup=10)
    assert [factor(step) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(middle)
    assert factor(110) == factor(10**9) == pytest.approx(0.0, abs=1e-15)
    high = schedule(steps=110, warmup=10, end=0.2)
    assert (high(10), high(60), high(110)) == pytest.approx((1.0, 0.6, 0.2))


def test_shapes_a_quarter_of_the_way():
    assert optim.cosine(steps=100)(25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert optim.linear_decay(steps=100)(25) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "factor",
    [
        optim.cosine(20, 5),
        optim.linear_decay(20, 5, end=0.1),
        optim.warm_restarts(4, 2),
        optim.one_cycle(20),
    ],
    ids=["cosine", "linear_decay", "warm_restarts", "one_cycle"],
)
def test_lambda_lr_applies_the_factor_of_each_step(factor):
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.SGD([{"params": [p]}], lr=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    moves = []
    for _ in range(25):
        before = p.item()
        p.grad = torch.ones_like(p)
        optimizer.step()
        scheduler.step()
        moves.append(before - p.item())
    assert moves == pytest.approx([0.3 * factor(step) for step in range(25)], abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.cosine(0), "^steps must be an integer >= 1, got 0"),
        (lambda: optim.cosine(10, warmup=10), "^warmup must be less than steps = 10, got 10"),
        (lambda: optim.cosine(10, warmup=-1), "^warmup must be an integer >= 0, got -1"),
        (lambda: optim.linear_decay(10.5), "^steps must be an integer >= 1, got 10.5"),
        (lambda: optim.linear_decay(10, end=-0.1), r"^end must be in \[0, inf\), got -0.1"),
        (lambda: optim.warm_restarts(0), "^first must be an integer >= 1, got 0"),
        (lambda: optim.warm_restarts(5, growth=1.5), "^growth must be an integer >= 1, got 1.5"),
        (lambda: optim.warm_restarts(5, end=2), r"^end must be in \[0, 1\], got 2"),
        (lambda: optim.one_cycle(1), "^steps must be an integer >= 2, got 1"),
        (lambda: optim.one_cycle(10, start=0), r"^start must be in \(0, 1\], got 0"),
        (lambda: optim.one_cycle(10, tail=1.0), r"^tail must be in \[0, 1\), got 1.0"),
        (lambda: optim.one_cycle(10, end=0.5), r"^end must be in \[0, 0.1\], got 0.5"),
    ],
)
def test_a_bad_value_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
