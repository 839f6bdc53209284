"""Opposing signals and gradient starvation while a run goes on: readings against explicit ones, and rules."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import opposing_signals
from thalweg.watch import Reading, all_rules
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.opposing import opposing
from thalweg.watch.sensors.starvation import starvation


def moment(model, batch, memory, step=1):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Moment(
        step,
        dict(model.named_parameters()),
        opt,
        model,
        inputs=((batch[0],), {}),
        targets=batch[1],
        memory=memory,
    )


def trained(model, batch, loss, visits=24, lr=0.5):
    """Readings of a run of gradient descent on one batch, and the losses of all examples before each step."""
    opt, memory, table, readings = torch.optim.SGD(model.parameters(), lr=lr), {}, [], []
    for step in range(1, visits + 1):
        readings.append(opposing.read(moment(model, batch, memory, step)))
        losses = loss(model(batch[0]), batch[1])
        table.append(losses.detach())
        opt.zero_grad()
        losses.mean().backward()
        opt.step()
    return readings, torch.stack(table)


def classes(seed=0):
    split = tasks.handwritten_digits(256, seed=seed)
    return split.train, tasks.MLP((64, 32, 10), seed=seed)


def test_the_reading_is_that_of_the_probe_on_the_losses_of_fixed_examples():
    batch, model = classes()
    readings, table = trained(model, batch, lambda z, y: F.cross_entropy(z, y, reduction="none"))
    assert [len(one) for one in readings] == [0] * 15 + [1] * 9
    expected = opposing_signals(table, group=8)
    found = readings[-1][0]
    assert found.value == pytest.approx(expected.correlation, abs=1e-6)
    assert found.extra["share"] == pytest.approx(expected.share, rel=1e-5)
    assert found.extra["top loss share"] == pytest.approx(expected.top_loss_share, rel=1e-5)
    assert found.extra["first loss"] == pytest.approx(table[0].mean().item(), rel=1e-5)
    assert found.extra["loss by chance"] == pytest.approx(math.log(10))
    numbers = [int(found.extra[f"rising {i}"]) for i in range(1, 9)]
    assert numbers == list(expected.rising)


def test_batch_normalisation_normalises_by_the_batch_as_the_losses_of_training_are():
    batch, _ = classes()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    readings, table = trained(model, batch, lambda z, y: F.cross_entropy(z, y, reduction="none"), lr=2.0)
    expected = opposing_signals(table, group=8)
    (found,) = readings[-1]
    assert found.value == pytest.approx(expected.correlation, abs=1e-5)
    assert found.extra["share"] == pytest.approx(expected.share, rel=1e-4)
    assert found.extra["rise"] == pytest.approx(expected.rise, rel=1e-4)
    assert model[1].num_batches_tracked == 24 and model[1].training


@pytest.mark.parametrize("one", [opposing, starvation])
def test_what_other_processes_normalise_too_is_not_read_by_running_statistics(one):
    model, memory = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4), nn.Linear(4, 2)), {}
    batch = torch.randn(64, 3), torch.randint(0, 2, (64,))
    assert one.read(moment(model, batch, memory)) == [] and "SyncBatchNorm" in memory["silent"]
    model.eval()
    for step in range(2, 20):
        found = one.read(moment(model, batch, memory, step))
    assert len(found) == 1 and memory["silent"] is None


def test_too_few_examples_to_be_normalised_by_themselves_are_not_taken():
    torch.manual_seed(0)
    model, memory = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), {}
    for step in range(1, 5):
        batch = torch.randn(255, 3), torch.randint(0, 2, (255,))
        assert opposing.read(moment(model, batch, memory, step)) == []
    assert [len(row) for row in memory["rows"]] == [255] * 4


def test_targets_that_are_numbers_are_judged_by_squared_errors():
    torch.manual_seed(0)
    batch = torch.randn(128, 5), torch.randn(128)
    model = nn.Linear(5, 1)
    readings, table = trained(model, batch, lambda z, y: (z.squeeze(1) - y).square() / 2, visits=20, lr=0.1)
    expected = opposing_signals(table, group=4)
    assert readings[-1][0].value == pytest.approx(expected.correlation, abs=1e-5)


def several(loss, **given):
    """The last reading of some training on answers to three questions, and the probe's on ``each`` loss."""
    torch.manual_seed(0)
    batch, model, memory = (torch.randn(128, 5), torch.randint(0, 2, (128, 3)).float()), nn.Linear(5, 3), {}
    opt, table = torch.optim.SGD(model.parameters(), lr=8.0), []
    for step in range(1, 25):
        at = moment(model, batch, memory, step)
        at.batch, at.loss_fn = batch, given.get("loss_fn")
        found = opposing.read(at)
        each = loss(model(batch[0]), batch[1]).sum(1)
        table.append(each.detach())
        opt.zero_grad()
        each.mean().backward()
        opt.step()
    return found, opposing_signals(torch.stack(table), group=4), table[0].mean().item(), memory


def yes_and_no(logits, targets):
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def test_answers_to_yes_and_no_are_judged_by_their_own_loss_where_it_is_known():
    told = lambda model, batch: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])  # noqa: E731
    (found,), expected, first, _ = several(yes_and_no, loss_fn=told)
    assert found.value == pytest.approx(expected.correlation, abs=1e-5)
    assert found.extra["rise"] == pytest.approx(expected.rise, rel=1e-5)
    assert found.extra["first loss"] == pytest.approx(first, rel=1e-5)
    assert found.extra["loss by chance"] == pytest.approx(3 * math.log(2))


def test_zeros_and_ones_are_judged_by_squares_where_the_loss_is_of_squares_and_not_at_all_if_unknown():
    squares = lambda z, y: (z - y).square() / 2  # noqa: E731
    told = lambda model, batch: F.mse_loss(model(batch[0]), batch[1])  # noqa: E731
    torch.manual_seed(0)
    (found,), expected, first, _ = several(lambda z, y: squares(z, y) / 100, loss_fn=told)
    assert found.extra["first loss"] == pytest.approx(100 * first, rel=1e-5)
    assert found.value == pytest.approx(expected.correlation, abs=1e-4)
    nothing, _, _, memory = several(yes_and_no)
    assert nothing == [] and "targets are 0 or 1" in memory["silent"] and "loss_fn=" in memory["silent"]


def test_positions_that_do_not_count_are_left_out_of_a_sequence():
    torch.manual_seed(0)
    model = nn.Linear(4, 7)
    inputs, targets = torch.randn(64, 3, 4), torch.randint(0, 7, (64, 3))
    targets[:, 2] = -100
    memory = {}
    opposing.read(moment(model, (inputs, targets), memory))
    each = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none").view(64, 3)
    assert torch.allclose(memory["rows"][0], each[:, :2].mean(1), atol=1e-6)


def test_small_batches_are_put_together_and_then_no_more():
    batch, model = classes()
    memory = {}
    for start in range(0, 256, 64):
        part = batch[0][start : start + 64], batch[1][start : start + 64]
        opposing.read(moment(model, part, memory))
    opposing.read(moment(model, (batch[0][:64] + 1, batch[1][:64]), memory))
    assert len(memory["rows"][-1]) == 256 and len(memory["parts"]) == 4
    expected = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    assert torch.allclose(memory["rows"][-1], expected, atol=1e-5)


def test_a_batch_that_comes_again_is_not_counted_twice():
    batch, model = classes()
    part, memory = (batch[0][:64], batch[1][:64]), {}
    for _ in range(4):
        opposing.read(moment(model, part, memory))
    assert len(memory["rows"][-1]) == 64


def test_a_model_whose_answers_are_no_classes_and_no_numbers_like_the_targets_gives_nothing():
    model, memory = nn.Linear(4, 3), {}
    assert opposing.read(moment(model, (torch.randn(64, 4), torch.randn(64, 5)), memory)) == []
    assert memory["silent"]


def test_modes_and_random_state_stay_as_they_are():
    batch, model = classes()
    model.train()
    state = torch.get_rng_state()
    opposing.read(moment(model, batch, {}))
    assert model.training and torch.equal(state, torch.get_rng_state())


def swings(
    correlation=-0.9, share=0.4, top=0.1, rise=1.0, fall=-1.0, count=8, start=20, first=2.0, chance=0.0
):
    extra = {"share": share, "top loss share": top, "rise": rise, "fall": fall}
    extra |= {"first loss": first, "loss by chance": chance, "examples": 256.0, "group": 2.0}
    extra |= {"rising 1": 7.0, "rising 2": 3.0, "falling 1": 40.0, "falling 2": 12.0}
    return [Reading(start + i, "opposing signals", correlation, {}, extra) for i in range(count)]


def feed(readings, name="opposing signals", about=None):
    (rule,) = (one for one in all_rules(about or {"optimizer": "SGD", "lr": 0.1}) if one.name == name)
    return [one for reading in readings for one in rule.see(reading)]


def test_groups_that_swing_are_named_once_with_their_examples():
    (found,) = feed(swings())
    assert found.step == 20 and found.severity == "warning"
    assert "3, 7 rise when 12, 40 fall" in found.message
    assert found.evidence["rising 1"] == 7 and found.evidence["share"] > found.evidence["threshold"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"correlation": -0.7}, False),
        ({"share": 0.25}, False),
        ({"top": 0.2}, False),  # examples of high loss change as much
        ({"top": 0.7, "share": 0.7, "rise": 2.0}, False),
        ({"top": 0.7, "share": 0.7, "rise": 2.0, "correlation": -0.97}, True),
        ({"top": 0.5, "share": 0.5, "rise": 2.0, "correlation": -0.97}, False),
        ({"top": 0.7, "share": 0.7, "rise": 0.8, "correlation": -0.97}, False),
        ({"rise": 0.2}, False),  # nothing against the first loss
        ({"rise": 1.0, "first": 0.1, "chance": 2.3}, True),
        ({"rise": 0.3, "first": 0.1, "chance": 2.3}, False),  # fine-tuning begins with a small loss
        ({"rise": 0.3, "first": 0.1}, True),
        ({"fall": 0.1}, False),
        ({"count": 2}, False),
        ({"correlation": float("nan")}, False),
    ],
)
def test_what_counts_as_swinging(changed, told):
    assert bool(feed(swings(**changed))) == told


@pytest.mark.parametrize("about", [{"optimizer": "SGD", "lr": 0.1}, {"optimizer": "AdamW", "lr": 1e-3}])
def test_remedies_run_as_pasted_and_papers_are_in_the_catalog(about):
    (found,) = feed(swings(), about=about)
    for key in {*found.papers, *(remedy.paper for remedy in found.remedies)}:
        assert papers.find(key).key == key
    for remedy in found.remedies:
        model = tasks.MLP((8, 16, 4), seed=0)
        opt = torch.optim.SGD(model.parameters(), lr=about["lr"])
        _, steps = paste(remedy.code, model, opt, [next(iter(batches(1, 64)))] * 20)
        assert steps[-1][2] < steps[0][2]
