"""A study that could not be judged fairly cannot be stated; tuning keeps what it tried."""

import math
from dataclasses import replace

import pytest

from thalweg.studies.discovery import find_study
from thalweg.studies.study import Arm, grid
from thalweg.studies.tuning import tuned
from thalweg.studies.verdicts import at_least


@pytest.fixture
def study(toys):
    return find_study("toy-quadratic", toys).STUDY


def test_grid_is_every_combination():
    assert grid(lr=(1, 2), decay=(0, 3)) == (
        {"lr": 1, "decay": 0},
        {"lr": 1, "decay": 3},
        {"lr": 2, "decay": 0},
        {"lr": 2, "decay": 3},
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": Arm("large", grid(lr=(1, 2, 3)))}, r"'large' must try as many .* 'small' \(2\), got 3"),
        ({"references": (Arm("none", ()),)}, "'none' must try as many"),
        ({"method": Arm("small", grid(lr=(1, 2)))}, "arms must have different names"),
        ({"verdict": {"reproduced": at_least(2)}}, "otherwise"),
        ({"effect": "method"}, "effect must be one of"),
        ({"worst": math.nan}, "worst must be finite"),
        ({"seeds": 2}, "seeds must be an integer >= 3, got 2"),
        ({"minutes": 0}, "minutes must be"),
        ({"setting": "far too large"}, "settings must have different names"),
    ],
)
def test_an_unfair_or_unclear_study_is_refused(study, change, said):
    with pytest.raises(ValueError, match=said):
        replace(study, **change)


def test_the_headline_comes_first(study):
    assert [one.setting for one in study.settings] == ["tuned", "far too large"]


@pytest.mark.parametrize(
    ("effect", "raw", "score"),
    [
        ("baseline / method", 3.0, 3.0),
        ("baseline / method", 1e9, 100.0),
        ("baseline / method", math.nan, 100.0),
        ("baseline / method", -math.inf, 100.0),
        ("method - baseline", 300.0, 300.0),
        ("method - baseline", 1.0, 100.0),
        ("method - baseline", math.inf, 100.0),
    ],
)
def test_scores_are_capped_at_the_worst(study, effect, raw, score):
    assert replace(study, effect=effect).score(raw) == score


def test_tuning_takes_the_best_mean_and_keeps_every_attempt():
    ran = []

    def run(config, seed):
        ran.append((config["lr"], seed))
        return (config["lr"] - 2) ** 2 + seed

    found = tuned(run, grid(lr=(1, 2, 3)), (10, 20), float)
    assert found.config == {"lr": 2}
    assert [(attempt.config["lr"], attempt.scores) for attempt in found.tried] == [
        (1, (11, 21)),
        (2, (10, 20)),
        (3, (11, 21)),
    ]
    assert len(ran) == 6
    assert tuned(run, grid(lr=(1, 2, 3)), (10, 20), float, lower_is_better=False).config == {"lr": 1}


def test_a_grid_of_one_is_chosen_unrun():
    found = tuned(lambda config, seed: pytest.fail("ran"), grid(lr=(1,)), (0,), float)
    assert found.config == {"lr": 1} and found.tried[0].scores == ()


@pytest.mark.parametrize(("configs", "seeds"), [((), (0,)), (({"lr": 1},), ())])
def test_tuning_over_nothing_is_refused(configs, seeds):
    with pytest.raises(ValueError, match="must not be empty"):
        tuned(lambda config, seed: 0, configs, seeds, float)
