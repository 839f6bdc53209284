"""Loss of plasticity: slower fits after changes of the targets, together with poorer features."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from benchmarks.findings.planted import plasticity as planted_runs
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import feature_ranks
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.plasticity import LossOfPlasticity
from thalweg.watch.sensors.feature_rank import feature_rank

NAME = "loss of plasticity"


def moment(model, inputs):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Moment(1, dict(model.named_parameters()), opt, model, inputs=((inputs,), {}))


def test_the_reading_is_the_effective_rank_of_each_layer_and_of_the_last():
    model = tasks.MLP((8, 16, 12, 4), seed=0).double()
    inputs = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).double()
    (raw,) = feature_rank.read(moment(model, inputs))
    exact = {name: one.effective_rank for name, one in feature_ranks(model, inputs[:64]).items()}
    assert dict(zip(raw.layers, raw.values.tolist(), strict=True)) == pytest.approx(exact, rel=1e-5)
    assert float(raw.value) == pytest.approx(exact["3"], rel=1e-5)


def test_long_sequences_and_large_images_are_thinned_and_a_model_without_activations_has_none():
    gpt = tasks.GPT(11, 40, layers=1, heads=2, width=8, seed=0)
    (raw,) = feature_rank.read(moment(gpt, torch.randint(0, 11, (20, 40))))
    assert 1 <= float(raw.value) <= 32
    images = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU())
    (raw,) = feature_rank.read(moment(images, torch.randn(70, 1, 20, 20)))
    assert 1 <= float(raw.value) <= 64
    assert feature_rank.read(moment(torch.nn.Linear(4, 4), torch.randn(5, 4))) == []


def test_thinned_rows_and_columns_are_of_every_position_and_place():
    """Of 64 sequences of 32 positions, and of images with 32 columns, every 32nd would be the first."""
    embedding = torch.nn.Embedding.from_pretrained(torch.randn(50, 16, generator=torch.manual_seed(0)))

    class Positions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.weight, self.act = embedding, torch.nn.Linear(16, 4), torch.nn.ReLU()

        def forward(self, tokens):
            hidden = self.table(tokens).clone()
            hidden[:, 0] = 1.0  # the first position is the same in all
            return self.weight(self.act(hidden))

    (raw,) = feature_rank.read(moment(Positions(), torch.randint(0, 50, (64, 32))))
    assert float(raw.value) > 5
    images = torch.nn.Sequential(
        torch.nn.Conv2d(1, 64, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2**16, 2)
    )
    x = torch.rand(64, 1, 32, 32, generator=torch.manual_seed(0))
    x[..., 0] = 0
    (raw,) = feature_rank.read(moment(images, x))
    assert float(raw.value) > 5


def test_the_answer_and_what_an_expert_is_given_are_no_features_of_the_network():
    class Answer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
            self.expert, self.act = torch.nn.Linear(16, 16), torch.nn.ReLU()

        def forward(self, x):
            x = torch.tanh(self.first(x))
            some = self.act(self.expert(x[:3]))
            return torch.sigmoid(self.last(torch.cat([some, x[3:]])))

    (raw,) = feature_rank.read(moment(Answer(), torch.randn(64, 8)))
    assert raw.layers == ("first",) and float(raw.value) > 2


def course(floors, ranks, task=50, last=50):
    """Readings of tasks in each of which the loss falls from 2.3 towards a floor."""
    source, step, rows = torch.Generator().manual_seed(0), 0, []
    for number, (floor, rank) in enumerate(zip(floors, ranks, strict=True)):
        for k in range(last if number == len(floors) - 1 else task):
            step += 1
            noise = 1 + 0.03 * torch.randn(1, generator=source).item()
            rows.append(Reading(step, "loss", (floor + (2.3 - floor) * math.exp(-k / 10)) * noise))
            if step % 10 == 0:
                rows.append(Reading(step, "feature rank", rank, {"1": 2 * rank, "3": rank}))
                rows.append(Reading(step, "dormant units", 0.1))
    return rows


def feed(rows):
    rule = LossOfPlasticity({})
    return [one for row in rows for one in rule.see(row)]


def test_a_loss_that_stays_ever_higher_is_named_with_the_change_where_it_began():
    (found,) = feed(course([0.3, 0.3, 0.3, 0.35, 0.6, 0.9, 1.2], [30, 30, 30, 28, 22, 17, 12]))
    assert found.evidence["at first"] == pytest.approx(
        0.3 + 2 * sum(math.exp(-k / 10) for k in range(25, 50)) / 25, rel=0.1
    )
    assert found.evidence["times"] > found.evidence["threshold"] == 1.3
    assert abs(found.step - 151) <= 1 and found.layers == ("1", "3")


def test_a_network_that_gets_stuck_after_a_change_is_named_without_another():
    (found,) = feed(course([0.3, 0.3, 0.3, 2.0], [30, 30, 30, 5], last=400))
    assert abs(found.step - 101) <= 51 and found.evidence["feature rank"] == 5


@pytest.mark.parametrize(
    ("floors", "ranks"),
    [
        ([0.3] * 12, [30, 30, 28, 25, 20, 15, 12, 10, 8, 6, 5, 4]),
        ([0.3, 0.3, 0.3, 0.4, 0.6, 0.9, 1.2], [30.0] * 7),
        ([1.2, 1.0, 0.8, 0.6, 0.4, 0.3], [30, 25, 20, 15, 10, 5]),
        ([0.3] * 3, [30, 20, 10]),
    ],
    ids=["as fast as ever", "harder targets", "ever faster", "few changes"],
)
def test_other_courses_are_none(floors, ranks):
    assert feed(course(floors, ranks)) == []


def test_a_run_that_diverges_in_leaps_has_not_lost_its_plasticity():
    """Each leap looks like new targets; none of them can make a loss a thousand times that of the first."""
    fitted = course([0.3] * 8, [30, 30, 28, 22, 17, 12, 8, 5])

    def leaping(times):
        leaps = [times if row.name == "loss" and row.step > 150 else 1 for row in fitted]
        return [replace(row, value=row.value * leap) for row, leap in zip(fitted, leaps, strict=True)]

    assert feed(leaping(1000)) == [] and len(feed(leaping(3))) == 1


def test_a_stationary_run_whose_loss_spikes_is_none():
    rows = course([0.3], [30], last=1500)
    spiked = [
        Reading(row.step, "loss", row.value * (5 if row.step % 100 < 4 else 1)) if row.name == "loss" else row
        for row in rows
    ]
    assert feed(spiked) == []


def test_momentum_carried_through_changes_is_named_and_its_twin_is_not():
    planted, twin = (planted_runs.renamed_sgd.outcome(100, fault) for fault in (True, False))
    assert NAME in {one.name for one in planted.findings}
    assert NAME not in {one.name for one in twin.findings}


def test_remedies_run_as_pasted_and_papers_are_there():
    (found,) = feed(course([0.3, 0.3, 0.3, 0.35, 0.6, 0.9, 1.2], [30, 30, 30, 28, 22, 17, 12]))
    assert all(papers.find(key).key == key for key in found.papers)
    for remedy in found.remedies:
        assert papers.find(remedy.paper).key == remedy.paper
        model, inputs = tasks.MLP((8, 16, 4), seed=0), torch.randn(64, 8)
        with torch.no_grad():
            model[0].bias -= 100
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        paste(remedy.code, model, opt, batches(4))
        opt.zero_grad()
        # Units that were shut have a gradient again.
        F.cross_entropy(model(inputs), torch.zeros(64, dtype=torch.long)).backward()
        assert bool((model[2].weight.grad != 0).any())


@pytest.mark.parametrize("kind", ["function", "module", "tokens"])
def test_the_normalisation_reaches_any_activation_and_no_position_sees_another(kind):
    (found,) = feed(course([0.3, 0.3, 0.3, 0.35, 0.6, 0.9, 1.2], [30, 30, 30, 28, 22, 17, 12]))

    class Shut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.act, self.down = torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
            torch.nn.init.constant_(self.up.bias, -100)

        def forward(self, x):
            return self.down(F.relu(self.up(x)) if kind == "function" else self.act(self.up(x)))

    model, x = Shut(), torch.randn(6, 5, 8) if kind == "tokens" else torch.randn(6, 8)
    exec(found.remedies[0].code, {"torch": torch, "model": model})
    before = model(x)
    before.square().sum().backward()
    assert bool((model.up.weight.grad != 0).any())
    changed = x.clone()
    changed[..., -1, :] += 1  # the last position, or the last example
    same = (model(changed) == before).all(-1)
    assert bool(same[..., :-1].all()) and not bool(same[..., -1].any())
