"""Accuracies may be logged as shares or in percent."""

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import Reading
from thalweg.watch.percent import Accuracies


def values(*given):
    known = Accuracies()
    shown = [known.share(Reading(1, "test accuracy", value)) for value in given]
    return [None if one is None else one.value for one in shown]


def test_one_above_one_and_a_half_makes_them_all_percent():
    assert values(0.1, 0.99, 1.0) == [0.1, 0.99, 1.0]
    assert values(20.0, 99.0, 0.5) == pytest.approx([0.2, 0.99, 0.005])
    assert values(0.5, 250.0, 1.2, -1.0) == [0.5, None, None, None]


def test_other_readings_stay_as_they_are():
    reading = Reading(1, "test loss", 40.0)
    assert Accuracies().share(reading) is reading


@pytest.mark.parametrize(("gap", "told"), [(5.0, False), (45.0, True)])
def test_a_gap_of_five_percent_is_not_learnt_by_heart(gap, told):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with thalweg.watch(None, opt, store=None, budget=0) as run:
        for _ in range(5):
            run.log(train_accuracy=99.5, test_accuracy=99.5 - gap)
            opt.step()
    assert [one.name for one in run.findings] == ["memorised, not generalising"] * told
