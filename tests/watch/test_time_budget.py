"""The budget, on a simulated clock."""

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import Budget, RunStore

SENSORS = {
    "cheap": {"share": 2.0, "every": 1, "passes": 0.3},
    "middling": {"share": 1.0, "every": 10, "passes": 1.0},
    "dear": {"share": 3.0, "every": 20, "passes": 60.0},
}
COSTS = {"cheap": 0.0005, "middling": 0.03, "dear": 0.9}


def simulate(budget, steps, *, step_time=0.1, costs=COSTS, hooks=0.0):
    ran = {name: [] for name in costs}
    for step in range(1, steps + 1):
        if step > 1:
            budget.earn(step_time)
        for name in budget.due(step):
            budget.pay(name, step, costs[name])
            ran[name].append(step)
        budget.overhead(hooks)
    return ran


def make(fraction, sensors=SENSORS):
    budget = Budget(fraction)
    for name, options in sensors.items():
        budget.add(name, **options)
    return budget


@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.1])
def test_the_fraction_is_used_and_kept_within_a_tenth(fraction):
    budget = make(fraction)
    ran = simulate(budget, 20_000)
    spent = sum(len(steps) * COSTS[name] for name, steps in ran.items())
    assert budget.trained == pytest.approx(19_999 * 0.1)
    assert spent / budget.trained == pytest.approx(budget.spent)
    assert 0.9 * fraction <= budget.spent <= 1.1 * fraction


def test_every_affordable_sensor_runs_and_the_dear_one_gets_at_least_its_share():
    ran = simulate(make(0.03), 20_000)
    assert all(ran.values())
    assert len(ran["dear"]) * COSTS["dear"] >= 0.9 * 0.5 * 0.03 * 2000
    gaps = [b - a for a, b in zip(ran["dear"], ran["dear"][1:], strict=False)]
    assert max(gaps) < 2 * 0.9 / (0.03 * 0.1 * 0.5)


def test_a_dear_sensor_whose_estimate_was_far_too_low_still_keeps_the_fraction():
    budget = make(0.03, {"dear": {"share": 1.0, "every": 1, "passes": 0.1}})
    simulate(budget, 20_000, costs={"dear": 3.0})
    assert 0.9 * 0.03 <= budget.spent <= 1.1 * 0.03


def test_no_sensor_runs_more_often_than_it_wants_to():
    ran = simulate(make(1.0), 400, costs=dict.fromkeys(SENSORS, 1e-6))
    assert ran["cheap"] == list(range(2, 401))
    assert {b - a for a, b in zip(ran["middling"], ran["middling"][1:], strict=False)} == {10}


def test_the_hooks_are_paid_for_first():
    plain, hooked = make(0.03), make(0.03)
    simulate(plain, 20_000)
    simulate(hooked, 20_000, hooks=0.001)
    assert hooked.hooks == pytest.approx(20.0)
    assert 0.9 * 0.03 <= hooked.spent <= 1.1 * 0.03
    sensors = sum(account.spent for account in hooked.accounts.values())
    assert sensors == pytest.approx(0.02 * 2000, rel=0.1)


def test_where_the_hooks_alone_cost_the_budget_no_sensor_runs_and_it_says_so():
    budget = make(0.03)
    ran = simulate(budget, 1000, hooks=0.004)
    assert not any(ran.values()) and set(budget.left_out()) == set(SENSORS)
    assert all(words.startswith("never ran: needs about") for words in budget.left_out().values())


def test_a_sensor_that_lacks_its_inputs_gives_its_share_away():
    idle = make(0.03)
    idle.idle({"dear", "cheap"})
    ran = simulate(idle, 5000)
    assert not ran["dear"] and not ran["cheap"]
    assert len(ran["middling"]) == pytest.approx(0.03 * 500 / 0.03, rel=0.02)
    assert set(idle.left_out()) == set()


def test_what_a_closed_sensor_spent_stays_spent():
    budget = make(0.03)
    simulate(budget, 5000)
    before = budget.spent
    budget.close("dear")
    assert budget.spent == before and "dear" not in budget.due(10_000)


def test_what_a_sensor_could_pay_too_late_is_not_said_to_be_too_little():
    budget = Budget(0.5)
    budget.add("late", share=1.0, every=1, passes=3.0)
    budget.earn(0.01)
    needs = "never ran: needs about 15 ms and its share of the budget came to"
    assert budget.left_out() == {"late": f"{needs} 5 ms in 1 steps"}
    budget.earn(0.03, 3)
    assert budget.left_out() == {"late": f"{needs} that only at the end in 4 steps"}


def test_left_out_tells_how_often_a_sensor_ran_instead():
    budget = make(0.03, {"dear": {"share": 1.0, "every": 20, "passes": 9.0}})
    (steps,) = simulate(budget, 10_000, costs={"dear": 0.9}).values()
    assert budget.left_out() == {"dear": f"ran every {9999 / len(steps):.0f} steps rather than every 20"}


def test_left_out_says_what_to_give_to_sensors_that_lack_something(small):
    with thalweg.watch(small.model, small.opt, store=None) as run:
        small.train(3)
    words = run.left_out()
    assert "watch(..., loss_fn=...)" in words["sharpness"]
    assert "watch(..., evaluate=(train, test))" in words["accuracy"]
    assert "run.log(batch=(inputs, targets))" in words["softmax collapse"]


def test_time_in_the_recorder_is_charged(small):
    with thalweg.watch(small.model, small.opt, budget=0, store=None) as run:
        for step in range(300):
            run.log(**{f"number_{index}": float(step) for index in range(20)})
            small.opt.step()
        assert run.findings == []
        small.opt.step()
        assert run.recorder.busy > 0
        run.left_out()  # brings the account up to date
        assert run.budget.hooks > run.recorder.busy


@pytest.mark.parametrize(("price", "every"), [(0.0, 1), (0.00049, 1), (0.00149, 3), (0.00151, 4), (1.0, 32)])
def test_what_does_not_fit_into_its_part_of_the_budget_comes_less_often(price, every):
    budget = make(0.03)
    simulate(budget, 100)  # 0.1 s a step: a sixth of the budget is 0.0005 s
    assert budget.every(price, 1 / 6) == every
    assert make(0.0).every(price, 1 / 6) == 1


def test_losses_that_cost_too_much_to_judge_are_all_stored_and_a_nan_is_still_found(tmp_path, monkeypatch):
    monkeypatch.setattr(Budget, "every", lambda self, price, part: 8)
    with thalweg.watch(None, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), store=tmp_path / "s") as run:
        run.left_out()  # settles what it costs
        for step in range(1, 101):
            run.log(loss=float("nan") if step == 51 else 1.0, step=step)
        assert [(one.name, one.step) for one in run.findings] == [("not finite", 51)]
        assert "loss" in run.left_out() and "every 8 steps" in run.left_out()["loss"]
    with RunStore(tmp_path / "s") as store:
        assert len(store.readings(1, "loss")) == 100


@pytest.mark.parametrize(("step_time", "asleep"), [(0.001, 200), (0.05, 32)])
def test_where_nothing_can_be_paid_for_long_nobody_looks_for_that_long(step_time, asleep):
    budget = make(0.03)
    budget.earn(100 * step_time, 100)
    budget.overhead(1e6)
    budget.earn(step_time)
    assert budget.wake(101) == 101 + asleep


def test_an_early_sensor_runs_from_the_first_steps_on_and_all_pay_that_back():
    early = {**SENSORS, "cheap": {**SENSORS["cheap"], "early": True}}
    budget = make(0.03, early)
    budget.overhead(0.5)  # what the start took: all that 160 steps earn
    ran = simulate(budget, 20_000)
    assert ran["cheap"][:30] == list(range(2, 32))
    assert not any(step < 100 for step in ran["middling"] + ran["dear"])
    assert 0.9 * 0.03 <= budget.spent <= 1.1 * 0.03


def test_an_early_sensor_that_a_thousand_steps_would_not_earn_waits_like_the_others():
    costs, dear = {"dear": 0.9}, {"share": 1.0, "every": 1, "passes": 27.0, "early": True}
    # A thousand steps earn 3 s; the first reading, whose cost is not known yet, is lent half as much again.
    assert simulate(make(0.03, {"dear": dear}), 33, costs=costs)["dear"] == [2, 3]
    assert not any(simulate(make(0.0, {"dear": dear}), 33, costs=costs)["dear"])


@pytest.fixture
def costly_start(monkeypatch):
    """Steps of 10 ms, in which hooks take three times the budget."""
    from thalweg.watch.clock import Clock

    def settle(self, budget, until, steps, busy):
        if self.since:
            budget.earn(0.01 * max(steps, 1), max(steps, 1))
        budget.overhead(0.0009)
        self.since, self.own, self.paid = until, 0.0, 0.0

    monkeypatch.setattr(Clock, "settle", settle)


def test_a_fault_in_the_first_steps_is_seen_where_the_hooks_cost_more_than_the_budget(costly_start, tmp_path):
    weight = nn.Parameter(torch.ones(4))
    opt = torch.optim.SGD([weight], lr=0.1)
    with thalweg.watch(None, opt, store=tmp_path / "s") as run:
        for step in range(1, 31):
            weight.grad = torch.full((4,), float("nan") if step == 3 else 1.0)
            opt.step()
    first = run.findings[0]
    assert (first.name, first.severity, first.step) == ("not finite", "warning", 3)
    with RunStore(tmp_path / "s") as store:
        assert [one.step for one in store.readings(1, "gradient norm")] == list(range(2, 31))


def test_a_budget_that_the_hooks_alone_exceed_is_said_to_be_exceeded(costly_start):
    weight = nn.Parameter(torch.ones(4))
    opt = torch.optim.SGD([weight], lr=0.0)
    with thalweg.watch(None, opt, store=None) as run:
        for _ in range(41):
            opt.step()
        words = run.left_out()["hooks and recorder"]
    share = float(words.removeprefix("took ").partition("%")[0]) / 100
    assert share == pytest.approx(run.budget.hooks / run.budget.trained, abs=0.01) and share > 0.03
    assert words.endswith("% of the time of 40 steps by themselves, more than the budget of 0.03")


def test_a_gradient_that_explodes_from_step_5_on_is_named_at_once(costly_start):
    weight = nn.Parameter(torch.ones(4))
    opt = torch.optim.SGD([weight], lr=0.0)
    with thalweg.watch(None, opt, store=None) as run:
        for step in range(1, 31):
            weight.grad = torch.full((4,), 1.5 ** max(0, step - 5))
            opt.step()
    (one,) = [one for one in run.findings if one.name == "exploding gradient"]
    assert one.step <= 6 and one.found <= 24


def test_a_pause_of_minutes_does_not_buy_minutes_of_readings():
    """Evaluation, or waiting for data: it counts once, and readings then come as often as before."""
    usual, paused = make(0.03), make(0.03)
    for budget in (usual, paused):
        simulate(budget, 10_000)
    paused.earn(600.0)
    after = []
    for budget in (usual, paused):
        before = budget.spent * budget.trained
        for step in range(10_001, 12_001):
            budget.earn(0.1)
            for name in budget.due(step):
                budget.pay(name, step, COSTS[name])
        after.append(budget.spent * budget.trained - before)
    # Three per cent of the pause are 18 s; what is left of them is a few readings of each sensor.
    assert after[1] - after[0] < 4 * max(COSTS.values())


def test_one_hiccup_is_paid_by_all_and_silences_no_sensor():
    budget = make(0.03)
    seconds = {name: [] for name in SENSORS}
    for step in range(1, 20_001):
        if step > 1:
            budget.earn(0.1)
        for name in budget.due(step):
            late = name == "cheap" and len(seconds[name]) == 1000
            budget.pay(name, step, 3.0 if late else COSTS[name])
            seconds[name].append(step)
    before, after = seconds["cheap"][1000:1002]
    assert after - before < 1200  # alone, with a third of the budget, it would pay for 3000 steps
    assert 0.9 * 0.03 <= budget.spent <= 1.1 * 0.03
