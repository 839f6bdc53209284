"""The studies that ship, and the evidence that ships with them: fair, complete, and judged by their rules."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from thalweg import optim, papers
from thalweg.papers.status import evidence_folder
from thalweg.studies import cli
from thalweg.studies.discovery import find_study, study_keys
from thalweg.studies.evidence import judged, load_evidence
from thalweg.studies.study import TUNING_SEED

KEYS = study_keys()
# A study is stated, and committed, before it is run.
MEASURED = [key for key in KEYS if papers.status(key).has_evidence]


@pytest.fixture(params=MEASURED)
def key(request):
    return request.param


@pytest.fixture
def study(key):
    return find_study(key).STUDY


@pytest.fixture
def evidence(key):
    return load_evidence(key)


def test_the_first_six_are_here():
    assert set(KEYS) >= {"ademamix", "dormant-neurons", "grokfast", "sgdr", "softmax-collapse", "spam"}


@pytest.mark.parametrize("any_key", KEYS)
def test_a_study_is_about_a_paper_of_the_catalog(any_key):
    found = papers.status(any_key)
    assert papers.find(any_key).key == any_key and found.has_study
    # Until it has been run nobody is told that it works.
    assert found.has_evidence or found.state == "partial"


def test_most_studies_have_been_run():
    assert len(MEASURED) >= 25


def test_a_study_states_claim_metric_and_rules(study):
    assert study.claim.endswith(".") and study.minutes > 0 and study.seeds >= 3
    for setting in study.settings:
        assert setting.metric and len(setting.verdict) >= 2
        # What happens to a run that never arrives is part of the metric.
        assert "counts as" in setting.metric or setting.metric.startswith("as ")


def test_evidence_was_measured_under_the_rules_that_the_study_states(study, evidence):
    assert (evidence["claim"], evidence["headline"]) == (study.claim, study.setting)
    assert list(evidence["settings"]) == [setting.setting for setting in study.settings]
    for setting in study.settings:
        found = evidence["settings"][setting.setting]
        assert found["metric"] == setting.metric
        assert found["rules"] == {name: str(rule) for name, rule in setting.verdict.items()}
        assert (found["formula"], found["worst"]) == (setting.effect, setting.worst)


def test_evidence_has_seeds_enough_that_were_not_tuned_on(evidence):
    assert len(evidence["seeds"]) >= 3
    assert max(evidence["seeds"]) < TUNING_SEED <= min(evidence["tuning_seeds"])


def test_every_arm_had_the_same_budget(study, evidence):
    for setting in study.settings:
        arms = evidence["settings"][setting.setting]["arms"]
        assert [arm["name"] for arm in arms] == [arm.name for arm in setting.arms]
        budgets = {
            (len(arm["tried"]), tuple(len(attempt["scores"]) for attempt in arm["tried"])) for arm in arms
        }
        assert len(budgets) == 1
        for arm, stated in zip(arms, setting.arms, strict=True):
            assert [attempt["config"] for attempt in arm["tried"]] == [dict(one) for one in stated.grid]


def test_every_arm_chose_what_was_best_in_tuning(study, evidence):
    for setting in study.settings:
        for arm in evidence["settings"][setting.setting]["arms"]:
            if len(arm["tried"]) == 1:
                assert arm["config"] == arm["tried"][0]["config"]
                continue
            means = [sum(attempt["scores"]) / len(attempt["scores"]) for attempt in arm["tried"]]
            best = (min if setting.lower_is_better else max)(means)
            chosen = next(m for m, a in zip(means, arm["tried"], strict=True) if a["config"] == arm["config"])
            assert chosen == pytest.approx(best, rel=1e-5)


def test_the_verdict_follows_from_the_numbers_of_the_seeds(evidence):
    for setting in evidence["settings"].values():
        again = judged(setting)
        assert {name: setting[name] for name in again} == again
    headline = evidence["settings"][evidence["headline"]]
    assert (evidence["verdict"], evidence["effect"]) == (headline["verdict"], headline["effect"])


def test_every_optimizer_can_be_built_from_its_description(evidence):
    import torch

    for setting in evidence["settings"].values():
        for arm in setting["arms"]:
            groups = arm["optimizer"].get("groups") or [{}]
            params = [{"params": [torch.nn.Parameter(torch.zeros(64, 64))]} for _ in groups]
            assert optim.spec(optim.build(arm["optimizer"], params))


def test_evidence_is_small_and_names_no_place(key, evidence):
    path = evidence_folder() / f"{key}.json"
    text = path.read_text()
    assert len(text) < 200_000
    assert str(Path.home()) not in text and str(path.parents[1]) not in text


def test_a_study_is_short_enough_to_read_in_one_sitting(key):
    file = Path(find_study(key).__file__)
    assert len(file.read_text().splitlines()) <= 160


def test_the_list_shows_every_study_with_its_verdict(monkeypatch):
    monkeypatch.setattr("thalweg._core.terminal.WIDE", 400)
    result = CliRunner().invoke(cli.app, ["list"])
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:-1]}
    assert tuple(rows) == KEYS
    for key, row in rows.items():
        assert (load_evidence(key)["verdict"] if key in MEASURED else "not run") in row
    assert result.stdout.splitlines()[-1] == f"{len(KEYS)} studies"
