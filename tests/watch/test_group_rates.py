"""Parameter groups of different rates: each weight is judged by its own."""

import math

import pytest
import torch
from torch import nn

import thalweg
from thalweg import optim
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rates_by_group import noted, sharpened
from thalweg.watch.rules.divergence_ahead import DivergenceAhead
from thalweg.watch.rules.effective_rate import ShrinkingEffectiveRate
from thalweg.watch.rules.loss_spike import LossSpike
from thalweg.watch.sensors.curvature import tracked_sharpness
from thalweg.watch.sensors.learning_rate import learning_rate


class Bowl(nn.Module):
    """A quadratic with curvatures 100 in ``a`` and 0.5 in ``b``, and a term that mixes them."""

    def __init__(self, mixed=0.0):
        super().__init__()
        self.a, self.b, self.mixed = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5)), mixed

    def forward(self, _):
        return 50 * self.a.square().sum() + 0.25 * self.b.square().sum() + self.mixed * self.a @ self.b


def loss_fn(model, batch):
    return model(batch)


def ratio(model, opt):
    moment = Moment(2, dict(model.named_parameters()), opt, model, loss_fn, batch=torch.zeros(8, 1))
    for _ in range(4):
        (raw,) = tracked_sharpness.read(moment)
    return raw.extra["ratio"], raw.extra


def sgd(model, b, a, **options):
    groups = [{"params": [model.b], "lr": b}, {"params": [model.a], "lr": a, **options}]
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize(("b", "a"), [(1.0, 0.005), (0.01, 0.0201), (0.0, 0.01)])
def test_sharpness_over_its_limit_counts_each_rate_where_it_acts(b, a):
    assert ratio(model := Bowl(), sgd(model, b, a))[0] == pytest.approx(max(100 * a, 0.5 * b) / 2, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
@pytest.mark.parametrize(("edge", "grows"), [(0.98, False), (1.02, True)])
def test_at_a_ratio_of_one_steps_begin_to_grow_also_where_groups_are_coupled(options, edge, grows):
    model = Bowl(mixed=3.0)
    scale = edge / ratio(model, sgd(model, 3.0, 0.02, **options))[0]
    opt = sgd(model, 3.0 * scale, 0.02 * scale, **options)
    first = max(abs(model(None).item()), 1.0)
    for _ in range(1000):
        opt.zero_grad()
        model(None).backward()
        opt.step()
    assert (not abs(model(None).item()) < 1e3 * first) == grows


def test_a_stable_run_with_a_slow_steep_group_is_silent():
    model = Bowl()
    with thalweg.watch(model, sgd(model, 1.0, 0.005), loss_fn=loss_fn, store=None, budget=1e9) as run:
        opt = run.watched[0].optimizer
        for _ in range(60):
            opt.zero_grad()
            loss = model(batch := torch.zeros(8, 1))
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
    assert [one.name for one in run.findings] == []


def test_groups_that_differ_under_sam_are_said_to_have_no_known_limit():
    model = Bowl()
    opt = optim.SAM(sgd(model, 1.0, 0.005), radius=0.05, normalized=False)
    moment = Moment(2, dict(model.named_parameters()), opt, model, loss_fn, batch=torch.zeros(8, 1))
    assert tracked_sharpness.read(moment) == []
    assert "not known for groups that differ" in moment.memory["silent"]


def test_a_rate_is_read_again_when_one_of_any_group_has_changed():
    model = Bowl()
    opt = sgd(model, 1.0, 0.005)
    moment = Moment(1, dict(model.named_parameters()), opt)
    assert learning_rate.read(moment)[0].extra == {"rate of group 0": 1.0, "rate of group 1": 0.005}
    assert learning_rate.read(moment) == []
    opt.param_groups[1]["lr"] = 0.05
    assert learning_rate.read(moment)[0].extra["rate of group 1"] == 0.05


@pytest.mark.parametrize(("shares", "told"), [([0.0, 1.0], True), ([1.0, 0.0], False)])
def test_a_jump_of_a_group_counts_where_the_sharp_direction_is(shares, told):
    def groups(second):
        return [{"lr": 0.01}, {"lr": second}]

    rule = DivergenceAhead({"optimizer": "SGD", "lr": 0.01})
    extra = {"ratio": 0.8, "limit": 200.0, "lr": 0.01, **noted(groups(0.01), shares)}
    rows = [Reading(1, "learning rate", 0.01, {}, noted(groups(0.01)))]
    rows += [
        Reading(2, "sharpness", 160.0, {}, extra),
        Reading(20, "learning rate", 0.01, {}, noted(groups(0.1))),
    ]
    found = [one for reading in rows for one in rule.see(reading)]
    assert [one.step for one in found] == ([20] if told else [])
    if told:
        assert found[0].evidence["sharpness over its limit"] == pytest.approx(8.0)


def test_sharpness_grows_as_the_rates_do_and_by_no_more_where_only_some_do():
    extra = {"lr": 0.01, **noted([{"lr": 0.01}, {"lr": 0.02}], [0.25, 0.75])}
    sharp = Reading(2, "sharpness", 1.0, {}, extra)
    assert sharpened(sharp, [0.03, 0.06]) == pytest.approx(3.0)
    assert sharpened(sharp, [0.01, 0.06]) == pytest.approx(1 / (0.25 + 0.25))
    assert sharpened(Reading(2, "sharpness", 1.0, {}, {"lr": 0.01}), [0.05]) == pytest.approx(5.0)


def test_a_group_that_is_decayed_alone_has_not_outgrown_its_rate():
    rule = ShrinkingEffectiveRate({"optimizer": "AdamW", "lr": 1e-3})
    for step in range(10, 400, 10):
        rate = 1e-3 * max(1 - step / 300, 1e-3)
        extra = {"rate": 1e-3, "rate of norm": rate}
        assert not list(rule.see(Reading(step, "effective rate", rate / 2, {"norm": rate / 2}, extra)))


def test_the_effective_rate_is_read_with_the_rate_of_the_weights_own_group():
    norm = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16))
    head = nn.Linear(16, 3)
    groups = [{"params": head.parameters()}, {"params": norm.parameters(), "lr": 1e-4}]
    opt = torch.optim.AdamW(groups, lr=1e-3)
    read = []
    with thalweg.watch(nn.Sequential(norm, head), opt, store=None, budget=1e9) as run:
        run.recorder.put = lambda step, raws, *rest: read.extend(raws)
        for _ in range(45):
            opt.zero_grad()
            head(norm(torch.randn(32, 8))).square().sum().backward()
            opt.step()
    found = [one for one in read if one.name == "effective rate"]
    assert found and found[-1].layers == ("0.0.weight",) and found[-1].extra == {"rate": 1e-4}


@pytest.mark.parametrize("group", [0, 1])
def test_a_spike_behind_the_jump_of_any_groups_rate_is_put_down_to_it(group):
    def rates(times):
        return noted([{"lr": 0.01 * times[0]}, {"lr": 0.1 * times[1]}])

    jumped = [8.0 if index == group else 1.0 for index in range(2)]
    rule = LossSpike({"optimizer": "SGD", "lr": 0.01})
    rows = []
    for step in range(1, 140):
        noise = 0.02 * math.sin(3.7 * step)
        rows.append(Reading(step, "loss", 1 + noise + 5 * (step >= 130)))
    rows.append(Reading(1, "learning rate", 0.01, {}, rates([1.0, 1.0])))
    extra = {"ratio": 0.5, "limit": 200.0, "lr": 0.01, **noted([{"lr": 0.01}, {"lr": 0.1}], [1.0, 0.0])}
    rows.append(Reading(120, "sharpness", 100.0, {}, extra))
    rows.append(Reading(127, "learning rate", 0.01 * jumped[0], {}, rates(jumped)))
    (found,) = [one for row in sorted(rows, key=lambda row: row.step) for one in rule.see(row)]
    assert f"learning rate of parameter group {group} rose 8 times" in found.message
    assert found.evidence["learning rate"] == pytest.approx(8 * 0.01 * 10**group)
    # The sharp direction lies in the first group.
    assert found.evidence["sharpness over its limit"] == pytest.approx(4.0 if group == 0 else 0.5)


@pytest.mark.parametrize("group", [0, 1])
def test_weights_that_grow_while_any_groups_rate_warms_up_are_none(group):
    def rate(step):
        both = [{"lr": 0.01}, {"lr": 0.01}]
        both[group]["lr"] *= step / 10
        return Reading(step, "learning rate", both[0]["lr"], {}, noted(both))

    growing = [Reading(10 * i, "weight norm", 1.3 ** max(0, i - 5)) for i in range(12)]
    warm = [rate(10 * i - 1) for i in range(1, 12)]
    rule = DivergenceAhead({"optimizer": "SGD", "lr": 0.01})
    assert [one for row in sorted([*growing, *warm], key=lambda row: row.step) for one in rule.see(row)] == []
