"""The losses that are logged for one step, as of accumulated batches, are one reading: their mean."""

import math

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import RunStore
from thalweg.watch.step_losses import StepLosses

NAN = math.nan


def losses_of(path):
    with RunStore(path) as store:
        return [(one.step, one.value) for one in store.readings(1, "loss")]


@pytest.mark.parametrize("parts", [1, 4])
def test_accumulated_batches_are_one_loss_a_step(tmp_path, parts):
    torch.manual_seed(0)
    net, wanted = nn.Linear(8, 3), []
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with thalweg.watch(net, opt, store=tmp_path / "s", budget=1e9) as run:
        for _ in range(12):
            logged = []
            for _part in range(parts):
                loss = net(torch.randn(16, 8)).square().mean()
                (loss / parts).backward()
                run.log(loss=loss, accuracy=0.5)
                logged.append(loss.item())
                if len(wanted) == 5:
                    assert run.findings == []  # waiting for the recorder in the middle of a step ends no sum
            wanted.append(sum(logged) / parts)
            opt.step()
            opt.zero_grad()
    steps, values = zip(*losses_of(tmp_path / "s"), strict=True)
    assert steps == tuple(range(1, 13)) and values == pytest.approx(wanted)


def test_what_is_not_finite_comes_at_once_and_beside_the_mean_of_the_rest():
    losses = StepLosses()
    assert list(losses.add(0.0, 3, 2.0, named=False)) == []
    ((when, step, value),) = losses.add(1.0, 3, NAN, named=False)
    assert (when, step) == (1.0, 3) and math.isnan(value)
    assert list(losses.add(2.0, 3, math.inf, named=False)) == []  # said once
    assert list(losses.add(3.0, 3, 4.0, named=False)) == []
    assert list(losses.begun(2)) == [] and list(losses.begun(3)) == [(0.0, 3, 3.0)]
    assert list(losses.begun(3)) == list(losses.end()) == []


def test_a_step_that_the_loop_names_may_have_begun_and_ends_with_the_next_one():
    losses = StepLosses()
    assert list(losses.add(0.0, 3, 2.0, named=True)) == list(losses.begun(3)) == []
    assert list(losses.add(1.0, 3, 6.0, named=True)) == []
    assert list(losses.add(2.0, 4, 1.0, named=True)) == [(0.0, 3, 4.0)]
    assert list(losses.begun(5)) == [(2.0, 4, 1.0)]


def test_rules_see_the_loss_of_a_step_before_its_gradient(tmp_path, monkeypatch):
    from thalweg.watch.judging import Judges

    seen, see = [], Judges.see

    def noted(self, label, reading):
        seen.append((reading.step, reading.name))
        return see(self, label, reading)

    monkeypatch.setattr(Judges, "see", noted)
    weight = nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([weight], lr=0.1)
    with thalweg.watch(None, opt, store=None, budget=1e9) as run:
        for _ in range(6):
            for _part in range(2):
                loss = weight.square().sum()
                loss.backward()
                run.log(loss=loss)
            opt.step()
            opt.zero_grad()
    for step in range(2, 7):
        mine = [name for at, name in seen if at == step]
        assert mine.index("loss") < mine.index("gradient norm") and mine.count("loss") == 1
