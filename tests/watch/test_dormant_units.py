"""Dormant units are judged on enough examples; a layer that never woke is a finding if nothing is learnt."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import Reading
from thalweg.watch.moment import Moment, counted
from thalweg.watch.rules.dormant_units import DormantUnits
from thalweg.watch.sensors.neurons import dormant


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))


def watched(model, size, steps=100, lr=1e-3):
    centres = torch.randn(5, 20)
    opt = torch.optim.Adam(model.parameters(), lr)
    with thalweg.watch(model, opt, store=None, budget=1e9) as run:
        for step in range(steps):
            y = torch.randint(5, (size[step % len(size)],))
            loss = F.cross_entropy(model(centres[y] + torch.randn(len(y), 20)), y)
            opt.zero_grad()
            loss.backward()
            run.log(loss=loss)
            opt.step()
    return [one for one in run.findings if one.name == "dormant units growing"], run


def test_a_first_layer_that_is_dead_from_the_start_is_critical():
    model = mlp()
    with torch.no_grad():
        model[0].bias.fill_(-30)
    (found,), _ = watched(model, [64])
    assert (found.step, found.severity, found.layers[0]) == (2, "critical", "1")
    assert found.evidence["threshold"] == 0.9 and "loss stays" in found.message


@pytest.mark.parametrize(
    ("shares", "loss"),
    [
        ([0.95] * 8, lambda step: 2.0 * 0.99**step),  # the rest learns
        ([0.95, 0.95, 0.3, 0.95, 0.95, 0.95], lambda step: 2.0),  # it can wake
        ([0.8] * 8, lambda step: 2.0),
        ([0.95] * 8, None),
    ],
)
def test_a_sparse_layer_of_a_run_that_learns_or_is_not_known_to_stand_still_is_none(shares, loss):
    rule = DormantUnits({"optimizer": "Adam", "lr": 1e-3})
    found = []
    for index, share in enumerate(shares):
        for step in range(20 * index, 20 * index + 20):
            found += [] if loss is None else rule.see(Reading(step, "loss", loss(step)))
        found += rule.see(Reading(20 * index + 20, "dormant units", 0.5, {"1": share}))
    assert found == []


@pytest.mark.parametrize("size", [[1], [64, 3, 1, 128, 17]])
def test_small_batches_make_no_unit_dormant(size):
    assert watched(mlp(), size, steps=300)[0] == []


def test_examples_are_put_together_until_there_are_64():
    model, x = mlp(), torch.randn(64, 20)
    moment = Moment(1, dict(model.named_parameters()), torch.optim.SGD(model.parameters(), 0.1), model)
    for part in x.split(20):
        moment.inputs = ((part,), {})
        last = dormant.read(moment)
    whole = thalweg.probe.dormant_neurons(model, x)
    assert last[0].values.tolist() == pytest.approx(list(whole.fraction.values()), abs=0.04)
    assert moment.memory["silent"] is None
    moment.memory.clear()
    moment.inputs = ((x[:20],), {})
    assert dormant.read(moment) == []
    assert moment.memory["silent"] == "of the 64 examples that it takes, 20 have come so far"


def test_tokens_count_as_examples():
    assert counted({"input_ids": torch.zeros(4, 16, dtype=torch.int64)}) == 64
    assert counted((torch.zeros(4, 16),)) == 4


def test_it_began_when_the_first_of_two_readings_saw_it():
    rule = DormantUnits({"optimizer": "Adam", "lr": 1e-3})
    rows = [(2, 0.0), (22, 0.0), (42, 0.0), (62, 0.3), (82, 0.3)]
    found = [one for step, share in rows for one in rule.see(Reading(step, "dormant units", share))]
    assert [one.step for one in found] == [62]


def rows_of(shares, losses):
    """A reading every twenty steps, and the loss of each step up to the one after it."""
    for index, share in enumerate(shares):
        yield 20 * index + 2, "dormant units", share
        yield from ((20 * index + 2 + step, "loss", losses(20 * index + step)) for step in range(1, 20))


@pytest.mark.parametrize(
    ("shares", "losses", "told"),
    [
        # Focal loss on one positive in twenty: units that answer those only are silent on most examples.
        ([0.01, 0.02, 0.13, 0.18, 0.13, 0.09, 0.1, 0.07], lambda step: 0.3 * 0.97**step, [(62, "info")]),
        ([0.01, 0.02, 0.13, 0.18, 0.2, 0.2], lambda step: 0.3, [(62, "warning")]),
        (
            [0.01, 0.02, 0.13, 0.18, 0.2, 0.2],
            lambda step: 0.3 * 0.97 ** min(step, 75) * (4 if step > 75 else 1),
            [(62, "info"), (102, "warning")],
        ),
        # It has arrived, and holds what it has learnt.
        ([0.01, 0.02, 0.13, 0.18, 0.2, 0.2], lambda step: 0.3 * 0.97 ** min(step, 75), [(62, "info")]),
        ([0.01, 0.6, 0.7, 0.7], lambda step: 0.3 * 0.97**step, [(42, "info")]),
        ([0.01, 0.6, 0.7, 0.7], lambda step: 0.3 + 0.01 * step, [(42, "critical")]),
    ],
)
def test_units_that_fall_silent_while_the_run_learns_are_information(shares, losses, told):
    rule = DormantUnits({"optimizer": "Adam", "lr": 1e-3})
    rows = rows_of(shares, losses)
    assert [(row[0], one.severity) for row in rows for one in rule.see(Reading(*row))] == told


def read(model, *batches):
    moment = Moment(1, dict(model.named_parameters()), torch.optim.SGD(model.parameters(), 0.1), model)
    for batch in batches:
        moment.inputs = ((batch,), {})
        last = dormant.read(moment)
    return last, moment


def test_dark_pixels_of_an_autoencoder_are_no_dormant_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 20), nn.Sigmoid())
    with torch.no_grad():
        model[2].bias[:15] = -30
    (raw,), _ = read(model, torch.randn(64, 20))
    assert (raw.layers, float(raw.value)) == (("1",), 0.0)
    assert thalweg.probe.dormant_neurons(model, torch.randn(64, 20)).fraction["3"] == 0.75
    squeezed = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0), nn.Sigmoid())
    (raw,), _ = read(squeezed, torch.randn(64, 20))
    assert raw.layers == ("1",)


class Experts(nn.Module):
    """One example in sixteen goes to the second expert."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)) for _ in range(2)
        )

    def forward(self, x):
        result = x.new_zeros(len(x), 5)
        for expert, chosen in zip(self.experts, (x[:, 0] <= 1.534, x[:, 0] > 1.534), strict=True):
            result[chosen] = expert(x[chosen])
        return result


def test_an_expert_is_judged_once_it_has_been_given_64_examples_of_its_own():
    model = Experts()
    batches = torch.randn(24, 96, 20, generator=torch.Generator().manual_seed(0)).unbind()
    (first,), _ = read(model, batches[0])
    assert first.layers == ("experts.0.1",)
    share = thalweg.probe.dormant_neurons(model, batches[0]).fraction["experts.1.1"]
    assert share > 0.1  # of the few examples it was given
    (last,), moment = read(model, *batches)
    assert last.layers == ("experts.0.1", "experts.1.1")
    assert last.values.tolist() == [0.0, 0.0]
    moment.inputs = ((batches[0][batches[0][:, 0] < 1.5],), {})
    (without,) = dormant.read(moment)
    assert without.layers == last.layers


def test_numbers_are_those_of_the_layer_that_its_threshold_is_about():
    rule = DormantUnits({"optimizer": "Adam", "lr": 1e-3})
    rows = [(2, 0.02, {"1": 0.1}), (22, 0.02, {"1": 0.1, "late": 0.6}), (42, 0.02, {"1": 0.1, "late": 0.6})]
    assert [one for row in rows for one in rule.see(Reading(row[0], "dormant units", *row[1:]))] == []
    (found,) = rule.see(Reading(62, "dormant units", 0.07, {"1": 0.55, "late": 0.6}))
    assert found.evidence == {"dormant": 0.55, "at first": 0.1, "threshold": 0.5, "of all units": 0.07}
    assert found.message.startswith("55% of the units of 1 are dormant, 10% were at step 2: ")
    assert found.layers == ("1",)


def test_a_layer_that_is_judged_later_is_no_rise_of_all_units():
    rule = DormantUnits({"optimizer": "Adam", "lr": 1e-3})
    early = [(step, 0.02, {"1": 0.02}) for step in range(2, 200, 20)]
    late = [(step, 0.3, {"1": 0.02, "expert": 0.58}) for step in range(202, 500, 20)]
    assert [one for row in early + late for one in rule.see(Reading(row[0], "dormant units", *row[1:]))] == []
    risen = [(step, 0.4, {"1": 0.22, "expert": 0.58}) for step in (502, 522)]
    found = [one for row in risen for one in rule.see(Reading(row[0], "dormant units", *row[1:]))]
    assert found[0].evidence["at first"] == 0.3 and found[0].layers == ("1",)
