"""Data in the order of their classes: batches that agree far less than the examples of one."""

import dataclasses
import random

import pytest
import torch
from benchmarks.findings.planted.unshuffled_data import in_order
from torch.nn import functional as F

import thalweg
from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.watch import Reading
from thalweg.watch.earlier_batches import Earlier
from thalweg.watch.moment import Moment
from thalweg.watch.rule import all_rules
from thalweg.watch.sensors.gradient_noise import gradient_noise


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def gradient(model, batch):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(model, batch), [*model.parameters()])])


def moment(noise):
    torch.manual_seed(0)
    model = tasks.MLP((6, 8, 3), seed=0).double()
    batch = torch.randn(64, 6).double(), torch.randint(0, 3, (64,))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn(model, batch).backward()
    memory = {"noise": noise, "signal": 1.0}
    return Moment(1, dict(model.named_parameters()), opt, model, loss_fn, batch, memory=memory)


def test_agreement_is_the_inner_product_with_the_gradient_of_another_batch():
    at = moment(noise=1.0)
    other = torch.randn(20, 6).double(), torch.randint(0, 3, (20,))
    at.earlier.offer(other)
    gradient_noise.read(dataclasses.replace(at, batch=other, memory=at.memory))
    at.memory |= {"noise": 1.0, "signal": 1.0}
    agreement, scale, _ = gradient_noise.read(at)
    across = (gradient(at.model, at.batch) @ gradient(at.model, other)).item()
    assert agreement.name == "agreement of batches"
    assert agreement.extra["across"] == pytest.approx(across, rel=1e-5)
    assert agreement.extra["within"] == scale.extra["signal"] and agreement.extra["batch"] == 64
    assert agreement.value == pytest.approx(across / scale.extra["signal"], rel=1e-5)


def test_it_is_not_asked_for_where_the_noise_is_large_or_there_is_no_other_batch():
    at = moment(noise=1.0)
    assert len(gradient_noise.read(at)) == 2
    at = moment(noise=13.0)  # a fifth of the batch is 12.8
    at.earlier.offer(at.batch)
    at.memory["seen"] = set(range(1000))
    assert len(gradient_noise.read(at)) == 2
    at.memory |= {"noise": 1.0, "signal": 1.0}
    assert len(gradient_noise.read(at)) == 3
    at.memory |= {"noise": 1.0, "signal": 1.0, "seen": set()}  # this batch is all that there is
    assert len(gradient_noise.read(at)) == 2


def test_what_is_kept_of_earlier_batches_is_copied_and_from_all_over_the_run():
    counts = torch.zeros(400)
    state = torch.get_rng_state(), random.getstate()
    for seed in range(60):
        earlier = Earlier(examples=2)
        earlier._random.seed(seed)
        for step in range(400):
            written = torch.full((5, 3), float(step))
            earlier.offer({"x": written})
            written.zero_()
        held = [one["x"] for one in earlier._held]
        assert [one.shape for one in held] == [(2, 3)] * 8
        for one in held:
            counts[int(one[0, 0])] += 1
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    # 480 of them, 120 from each quarter of the run but for chance: a standard deviation is 9.5.
    assert (counts.reshape(4, 100).sum(1) - 120).abs().max() < 38


def test_of_batches_that_are_too_large_to_keep_or_no_batches_nothing_is_kept():
    earlier = Earlier()
    for odd in (torch.zeros(2, 2**22), "words", {}, None):
        earlier.offer(odd)
    assert earlier.any() is None
    earlier.offer(torch.zeros(32, 2**18))
    assert len(earlier.any()) == 8  # of a megabyte each


def told(rows, names=("unshuffled data", "batch larger than it needs to be")):
    rules = [rule for rule in all_rules({"optimizer": "SGD", "lr": 0.1}) if rule.name in names]
    return [one for row in rows for rule in rules if row.name in rule.reads for one in rule.see(row)]


def rows(across, steps=400, spread=0.1):
    """Signal 1, noise 2 at batches of 100, and what another batch agrees."""
    source = torch.Generator().manual_seed(0)
    for step in range(5, steps, 5):
        within, here = (1 + spread * torch.randn(2, generator=source)).tolist()
        extra = {"across": across * here, "within": within, "batch": 100.0}
        yield Reading(step, "agreement of batches", across, {}, extra)
        yield Reading(step, "gradient noise scale", 2.0, {}, {"signal": within, "noise": 2.0, "batch": 100.0})


@pytest.mark.parametrize("across", [-0.5, 0.0, 0.3])
def test_batches_that_agree_less_than_half_are_told_and_nothing_of_their_size(across):
    (found,) = told(rows(across))
    assert found.name == "unshuffled data" and found.severity == "warning"
    assert found.evidence["agreement"] == pytest.approx(across, abs=0.05)
    assert found.step > 50 and found.step < 70
    assert ("not at all" in found.message) == (across <= 0)
    assert set(found.papers) <= {one.key for one in papers.load()}


@pytest.mark.parametrize("across", [0.7, 1.0])
def test_batches_that_agree_are_larger_than_they_need_to_be(across):
    (found,) = told(rows(across))
    assert found.name == "batch larger than it needs to be"


@pytest.mark.parametrize("across", [0.45, 0.55])
def test_where_it_is_not_sure_neither_is_said(across):
    assert told(rows(across, spread=0.3, steps=150)) == []


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_run_on_sorted_data_is_told_so_and_no_batch_size(order):
    torch.manual_seed(0)
    split = tasks.noisy_clusters(1024, noisy_labels=0.0, seed=9100)
    model = tasks.MLP((20, 32, 5), activation="tanh", seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    stream = in_order(split.train, 64)
    with thalweg.watch(model, opt, loss_fn=loss_fn, budget=1e9, store=None) as run:
        for _ in range(160):
            batch = next(stream)
            if order == "shuffled":
                index = torch.randint(len(split.train[1]), (64,))
                batch = split.train[0][index], split.train[1][index]
            loss = loss_fn(model, batch)
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
            opt.zero_grad()
    names = {one.name for one in run.findings}
    assert run.disabled == {} and "batch larger than it needs to be" not in names
    assert ("unshuffled data" in names) == (order == "sorted")


def test_the_remedy_shuffles_the_loop_of_the_readme():
    (found,) = told(rows(0.0))
    loader = torch.utils.data.DataLoader(batches(10, 16).dataset, 16)
    model = torch.nn.Linear(8, 4)
    names, steps = paste(found.remedies[0].code, model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    assert isinstance(names["loader"].sampler, torch.utils.data.RandomSampler)
    assert names["loader"].batch_size == 100 and len(steps) == 2
