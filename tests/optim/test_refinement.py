"""Refined schedules against a slow transcription of the rule, closed forms, and a watched run."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thalweg
from thalweg import optim
from thalweg.watch import RunStore


def slowly(norms, power, share=0.1):
    """The rule as the paper's section on refinement states it, one number at a time."""
    T = len(norms)
    width = 2 * (math.floor(share * T) // 2) + 1
    # The tail goes on as its own mirror image, for twice the width; the head as its first value.
    tail = list(norms)
    direction, place = -1, T - 1
    for _ in range(2 * width):
        if place + direction in (-1, T):
            direction = -direction
        place += direction
        tail.append(norms[place])
    half = width // 2
    smooth = [
        statistics.median(tail[max(0, t + offset)] for offset in range(-half, half + 1)) for t in range(T)
    ]
    weights = [g**-power for g in smooth]
    shape = [weights[t] * sum(weights[p] for p in range(t + 1, T)) for t in range(T)]
    return [s / max(shape) for s in shape]


def values(schedule, steps):
    return [schedule(step) for step in range(steps)]


@given(st.integers(3, 60), st.sampled_from([("l2", 2), ("l1", 1)]), st.integers(0, 10**6), st.floats(0, 0.9))
@settings(deadline=None, max_examples=60)
def test_it_equals_the_slow_transcription(T, norm, seed, share):
    norms = np.exp(np.random.default_rng(seed).normal(size=T)).tolist()
    ours = values(optim.refined(norms, norm[0], smoothing=share), T)
    assert ours == pytest.approx(slowly(norms, norm[1], share), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("T", [3, 10, 1000])
def test_constant_norms_give_linear_decay(norm, T):
    ours, linear = optim.refined([0.7] * T, norm), optim.linear_decay(T - 1)
    assert values(ours, T + 5) == pytest.approx(values(linear, T + 5), abs=1e-12)


def test_norms_that_fall_at_first_give_a_warmup():
    """15 to 1 over the first tenth: the schedule starts at 1/225 of its height and peaks where they level."""
    T = 1000
    norms = np.interp(np.arange(T), [0, 100, T], [15, 1, 1])
    shape = values(optim.refined(norms.tolist(), smoothing=0.0), T)
    assert shape[0] == pytest.approx(1 / 225, rel=0.03)
    assert np.argmax(shape) == 100
    assert shape[100:] == pytest.approx(values(optim.linear_decay(T - 1 - 100), T - 100), abs=1e-12)


def test_norms_that_grow_at_the_end_give_a_faster_fall():
    norms = np.interp(np.arange(1000), [0, 700, 999], [1, 1, 3]).tolist()
    shape = values(optim.refined(norms), 1000)
    linear = values(optim.linear_decay(999), 1000)
    assert all(a < b for a, b in zip(shape[300:999], linear[300:999], strict=True))


def test_the_floor_bounds_what_the_rule_may_do():
    norms = np.linspace(0.37, 1.4, 500).tolist()
    shape = [values(optim.refined(norms, floor=floor), 500) for floor in (0.0, 0.5, 1.0)]
    # Half-way through, rising norms leave little; the floor gives it back, up to linear decay.
    assert shape[0][250] < 0.15 < shape[1][250] < 0.2 < shape[2][250]
    assert shape[2] == pytest.approx(values(optim.linear_decay(499), 500), abs=1e-12)
    raised = np.maximum(norms, 0.5 * 1.4).tolist()
    assert values(optim.refined(norms, floor=0.5, smoothing=0.0), 500) == pytest.approx(
        slowly(raised, 2, 0.0), rel=1e-9
    )


def test_what_is_not_finite_or_zero_is_interpolated():
    norms = [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0]
    holes = [math.inf, 3.5, math.nan, 2.5, 2.0, 0.0, 1.0, 1.0, math.nan, 1.0]
    filled = [3.5, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0]
    assert norms != filled
    ours = optim.refined(holes, smoothing=0.0)
    assert values(ours, 10) == pytest.approx(slowly(filled, 2, 0.0))


def test_norms_at_some_steps_stand_for_those_between():
    every = np.interp(np.arange(5, 106), [5, 25, 65, 105], [8, 2, 1, 1.5])
    at = [5, 25, 65, 105]
    sparse = optim.refined([8, 2, 1, 1.5], at=at)
    assert values(sparse, 101) == pytest.approx(values(optim.refined(every.tolist()), 101))


@pytest.mark.parametrize("steps", [2, 50, 100, 777])
def test_another_length_stretches_the_shape(steps):
    norms = np.exp(np.random.default_rng(1).normal(size=100)).tolist()
    before, after = optim.refined(norms), optim.refined(norms, steps=steps)
    assert after(0) == before(0)
    assert after(steps - 1) == after(10**9) == 0.0
    for step in range(steps):
        place = step * 99 / (steps - 1)
        low, part = int(place), place - int(place)
        assert after(step) == pytest.approx((1 - part) * before(low) + part * before(low + 1), abs=1e-12)


def test_huge_and_tiny_norms_do_not_overflow():
    for scale in (1e-200, 1e200):
        shape = values(optim.refined([5 * scale, 2 * scale, scale, scale], smoothing=0.0), 4)
        assert shape == pytest.approx(slowly([5.0, 2.0, 1.0, 1.0], 2))


def test_the_gradient_norms_of_a_watched_run_make_the_schedule_of_the_next(tmp_path):
    torch.manual_seed(0)
    x, target = torch.randn(64, 5), torch.randn(64)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    norms = []
    with thalweg.watch(model, optimizer, budget=1e9, store=tmp_path / "runs.sqlite"):
        for _ in range(40):
            optimizer.zero_grad()
            (model(x)[:, 0] - target).square().mean().backward()
            norms.append(math.sqrt(sum(p.grad.double().square().sum() for p in model.parameters())))
            optimizer.step()

    with RunStore(tmp_path / "runs.sqlite") as store:
        (run,) = store.runs()
        seen = store.readings(run.id, "gradient norm")
    # The first step is not watched.
    assert [r.step for r in seen] == list(range(2, 41))
    schedule = optim.refined([r.value for r in seen], at=[r.step for r in seen], steps=80)
    wanted = slowly(norms[1:], 2)
    assert [schedule(0), schedule(79)] == pytest.approx([wanted[0], 0.0], rel=1e-5)
    assert schedule(158 / 2 / 38 * 20) == pytest.approx(wanted[20], rel=1e-5)
    # Norms that fall all along: a warm-up.
    assert schedule(0) < 0.5

    follow = torch.optim.lr_scheduler.LambdaLR(optim.SGD(model.parameters(), lr=1.0), schedule)
    assert follow.get_last_lr() == [schedule(0)]


def test_for_adam_the_run_logs_the_l1_norms(tmp_path):
    torch.manual_seed(0)
    x, target = torch.randn(64, 5), torch.randn(64)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    norms = []
    with thalweg.watch(model, optimizer, budget=0.01, store=tmp_path / "runs.sqlite") as run:
        for _ in range(30):
            optimizer.zero_grad()
            (model(x)[:, 0] - target).square().mean().backward()
            norms.append(sum(p.grad.double().abs().sum().item() for p in model.parameters()))
            run.log(gradient_l1=sum(p.grad.abs().sum() for p in model.parameters()))
            optimizer.step()
    with RunStore(tmp_path / "runs.sqlite") as store:
        seen = store.readings(1, "gradient l1")
    schedule = optim.refined([r.value for r in seen], norm="l1", at=[r.step for r in seen])
    assert values(schedule, 30) == pytest.approx(slowly(norms, 1), rel=1e-5)


def test_readings_that_the_budget_thinned_out_still_make_it():
    """Every third reading of a slowly changing run gives nearly the schedule of all."""
    norms = np.interp(np.arange(300), [0, 60, 299], [6, 1, 1.5])
    whole = optim.refined(norms.tolist())
    steps = sorted({0, 299, *np.random.default_rng(0).choice(300, 100, replace=False).tolist()})
    thinned = optim.refined(norms[steps].tolist(), at=steps)
    assert values(thinned, 300) == pytest.approx(values(whole, 300), abs=0.1)


GOOD = [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.refined(GOOD, norm="L2"), "^norm must be one of l1, l2; got 'L2'"),
        (lambda: optim.refined(GOOD, smoothing=1.0), r"^smoothing must be in \[0, 1\), got 1.0"),
        (lambda: optim.refined(GOOD, floor=-1), r"^floor must be in \[0, 1\], got -1"),
        (lambda: optim.refined(GOOD, steps=1), "^steps must be an integer >= 2, got 1"),
        (lambda: optim.refined([1.0, 2.0]), "^grad_norms must cover at least 3 steps, got 2"),
        (lambda: optim.refined([]), "^grad_norms must cover at least 3 steps, got 0"),
        (lambda: optim.refined([1.0, -2.0, 1.0]), "^grad_norms must not be negative, got -2.0"),
        (lambda: optim.refined([0.0, math.nan, math.inf]), "^grad_norms must hold a finite number above 0"),
        (lambda: optim.refined([GOOD, GOOD]), "^grad_norms must be one number a step, got an array of shape"),
        (lambda: optim.refined(GOOD, at=[1, 2]), "^at must give a step for each of the 3 norms"),
        (lambda: optim.refined(GOOD, at=[1, 5, 5]), "^at must be increasing"),
    ],
)
def test_a_bad_value_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
