"""A finding says when it began and when it was found, and keeps both."""

import pytest
import torch

import thalweg
from thalweg.report import write_report
from thalweg.watch import Finding, RunStore

NAME = "memorised, not generalising"


def attempt(path, steps, **options):
    """Logged accuracies of a training set learnt by heart: the rule wants three readings in a row."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with thalweg.watch(None, opt, budget=0, store=path, name="mine", **options) as run:
        for _ in range(steps):
            run.log(train_accuracy=1.0, test_accuracy=0.1)
            opt.step()
    return run.findings


def test_found_is_the_step_of_the_reading_that_told_it(tmp_path):
    (finding,) = attempt(tmp_path / "s", 10)
    assert (finding.name, finding.step, finding.found) == (NAME, 1, 3)
    assert f"{NAME} at step 1, found at step 3: train accuracy" in str(finding)
    with RunStore(tmp_path / "s") as store:
        assert store.findings(1) == [finding]
    page = write_report(tmp_path / "s", tmp_path / "page.html").read_text(encoding="utf8")
    assert "from step 1, found at step 3, warning" in page


@pytest.mark.parametrize("start", [2, 5])
def test_a_run_that_is_resumed_between_the_two_steps_finds_it_once(tmp_path, start):
    attempt(tmp_path / "s", 10)
    (finding,) = attempt(tmp_path / "s", 10, resume=True, start=start)
    assert (finding.step, finding.found) == (1, 3)
    with RunStore(tmp_path / "s") as store:
        assert store.findings(1) == [finding]


def test_a_finding_stored_before_this_was_noted_has_none():
    described = Finding("gradient spike", 5, "", {}, found=5).as_dict()
    assert Finding.from_dict(described).found == 5 and ", found" not in str(Finding.from_dict(described))
    del described["found"]
    assert Finding.from_dict(described).found is None
