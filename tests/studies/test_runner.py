"""A study dropped into a folder is found, tuned, run and judged; its numbers follow from its seeds."""

import json
import multiprocessing
from statistics import median

import pytest
import torch

from thalweg import optim
from thalweg.studies.discovery import UnknownStudy, find_study, study_keys
from thalweg.studies.evidence import load_evidence
from thalweg.studies.runner import run_studies, run_study
from thalweg.studies.study import TUNING_SEED


def steady(evidence):
    return {name: value for name, value in evidence.items() if name not in ("minutes", "date")}


@pytest.fixture
def evidence(toys, tmp_path):
    return run_study("toy-quadratic", studies=toys, folder=tmp_path / "evidence")


def test_a_dropped_file_is_a_study(toys):
    assert study_keys(toys) == ("toy-quadratic",)
    (toys / "helper.py").write_text("x = 1\n")
    (toys / "another_one.py").write_text((toys / "toy_quadratic.py").read_text())
    assert study_keys(toys) == ("another-one", "toy-quadratic")
    with pytest.raises(ValueError, match=r"another_one\.py: STUDY must be a Study of paper 'another-one'"):
        find_study("another-one", toys)


def test_an_unknown_study_suggests_the_nearest(toys):
    with pytest.raises(UnknownStudy, match=r"no study has the key 'toy-quadratc'.*toy-quadratic"):
        find_study("toy-quadratc", toys)


def test_the_scores_are_the_closed_form(evidence):
    small, large, none = evidence["settings"]["tuned"]["arms"]
    for seed in range(3):
        start = torch.randn(4, generator=torch.Generator().manual_seed(seed)).norm().item()
        assert small["scores"][seed] == pytest.approx(start * 0.96**10, rel=1e-5)
        assert large["scores"][seed] == pytest.approx(start * 0.8**10, rel=1e-5)
        assert none["numbers"]["start"][seed] == pytest.approx(start, rel=1e-5)
    assert evidence["effect"] == pytest.approx(1.2**10, rel=1e-4)
    assert evidence["verdict"] == "reproduced"


def test_the_effect_is_the_median_of_the_paired_effects_with_its_spread(evidence):
    one = evidence["settings"]["tuned"]
    assert one["effect"] == median(one["effects"])
    assert one["spread"] == [min(one["effects"]), max(one["effects"])]


def test_each_arm_chooses_by_the_tuning_seeds_which_are_not_judged(evidence):
    small, large, none = evidence["settings"]["tuned"]["arms"]
    assert evidence["tuning_seeds"] == [TUNING_SEED, TUNING_SEED + 1]
    assert not set(evidence["tuning_seeds"]) & set(evidence["seeds"])
    assert small["config"] == {"lr": 0.02} and large["config"] == {"lr": 0.1}
    assert [len(arm["tried"]) for arm in (small, large, none)] == [2, 2, 2]
    assert all(len(attempt["scores"]) == 2 for attempt in small["tried"])


def test_a_run_that_diverges_counts_as_the_worst_and_is_said(evidence):
    beside = evidence["settings"]["far too large"]
    assert beside["arms"][1]["scores"] == [100.0] * 3
    assert beside["arms"][1]["capped"] == 3
    assert beside["verdict"] == "not reproduced"
    assert beside["arms"][1]["curve"]["median"][-1] is None
    assert "3 of 3 runs of large (far too large) count as 100." in evidence["notes"]


def test_the_file_holds_what_was_returned_and_the_optimizers_can_be_built_from_it(evidence, tmp_path):
    assert load_evidence("toy-quadratic", tmp_path / "evidence") == evidence
    spec = evidence["settings"]["tuned"]["arms"][1]["optimizer"]
    assert repr(optim.build(spec, [torch.nn.Parameter(torch.zeros(1))])).endswith("lr=0.1)")


def test_the_same_seeds_give_the_same_numbers(evidence, toys, tmp_path):
    again = run_study("toy-quadratic", studies=toys, folder=tmp_path / "again")
    assert steady(again) == steady(evidence)


def test_more_seeds_begin_with_the_fewer(evidence, toys, tmp_path):
    more = run_study("toy-quadratic", seeds=5, studies=toys, folder=tmp_path / "more")
    for few, many in zip(
        evidence["settings"]["tuned"]["arms"], more["settings"]["tuned"]["arms"], strict=True
    ):
        assert many["scores"][:3] == few["scores"]


@pytest.mark.parametrize(("seeds", "said"), [(2, ">= 3"), (0, ">= 3"), (1001, "at most 1000")])
def test_too_few_or_too_many_seeds_are_refused(toys, tmp_path, seeds, said):
    with pytest.raises(ValueError, match=f"seeds must be .*{said}"):
        run_study("toy-quadratic", seeds=seeds, studies=toys, folder=tmp_path)


def test_progress_counts_every_run(toys, tmp_path):
    seen = []
    run_study(
        "toy-quadratic",
        studies=toys,
        folder=tmp_path,
        progress=lambda done, total, what: seen.append((done, total)),
    )
    # Three arms of two configurations on two seeds, five arms of three seeds.
    assert seen == [(number, 27) for number in range(1, 28)]


def test_threads_are_put_back(evidence, toys, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_study("toy-quadratic", studies=toys, folder=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_study_leaves_the_old_file_as_it_was(evidence, toys, tmp_path, stop):
    folder = tmp_path / "evidence"
    before = (folder / "toy-quadratic.json").read_bytes()

    def interrupt(done, total, what):
        if done == 20:
            raise stop

    with pytest.raises(stop):
        run_study("toy-quadratic", studies=toys, folder=folder, progress=interrupt)
    assert [file.name for file in folder.iterdir()] == ["toy-quadratic.json"]
    assert (folder / "toy-quadratic.json").read_bytes() == before


def test_several_studies_run_in_processes_and_a_broken_one_stops_no_other(evidence, toys, tmp_path):
    text = (toys / "toy_quadratic.py").read_text().replace("toy-quadratic", "toy-broken")
    (toys / "toy_broken.py").write_text(text.replace("norms = [x.norm().item()]", "norms = missing"))
    outcomes = dict(run_studies(study_keys(toys), jobs=2, folder=tmp_path / "two", studies=toys))
    assert isinstance(outcomes["toy-broken"], NameError)
    assert steady(outcomes["toy-quadratic"]) == steady(evidence)
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["toy-quadratic.json"]
    assert not multiprocessing.active_children()


def test_evidence_names_no_folder_and_no_host(evidence, tmp_path):
    import platform

    text = json.dumps(evidence)
    assert str(tmp_path) not in text and "/home" not in text
    assert platform.node() not in text or len(platform.node()) < 4
    assert set(evidence["machine"]) == {"cpu", "cores"}
