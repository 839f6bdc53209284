"""A status follows from the files that exist, and from nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from thalweg.papers import Entry, UnknownPaper, load, status
from thalweg.papers.status import evidence_folder, read_evidence

PAPER = Entry(
    "some-paper",
    "Some Paper",
    "optim",
    "part",
    1,
    ("momentum",),
    parts=("thalweg.optim.wave", "thalweg.optim.Wave"),
)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """An empty checkout; returns its package folder."""
    package = tmp_path / "src" / "thalweg"
    for folder in (package / "optim", package / "studies", tmp_path / "evidence"):
        folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (package / "optim" / "__init__.py").write_text("")
    return package


def add_parts(
    package: Path, text: str = "def wave(): ...\n\nclass Wave: ...\n", name: str = "waves.py"
) -> None:
    (package / "optim" / name).write_text(text)


def add_study(package: Path) -> None:
    (package / "studies" / "some_paper.py").write_text("STUDY = None\n")


def add_evidence(package: Path, text: str = '{"verdict": "reproduced"}') -> None:
    (package.parents[1] / "evidence" / "some-paper.json").write_text(text)


def test_with_nothing_there_a_paper_is_planned_and_says_what_is_missing(checkout):
    found = status(PAPER, package=checkout)
    assert found.state == "planned"
    assert found.parts_missing == PAPER.parts
    assert found.reasons == (
        "part thalweg.optim.wave does not exist yet",
        "part thalweg.optim.Wave does not exist yet",
        "study studies/some_paper.py does not exist yet",
        "evidence some-paper.json does not exist yet",
    )


@pytest.mark.parametrize("add", [add_parts, add_study, add_evidence])
def test_with_one_of_three_a_paper_is_partial(checkout, add):
    add(checkout)
    assert status(PAPER, package=checkout).state == "partial"


def test_with_one_part_of_two_a_paper_is_partial(checkout):
    add_parts(checkout, "wave = 1\n")
    add_study(checkout)
    add_evidence(checkout)
    found = status(PAPER, package=checkout)
    assert (found.state, found.parts_present, found.parts_missing) == (
        "partial",
        ("thalweg.optim.wave",),
        ("thalweg.optim.Wave",),
    )


def test_with_parts_study_and_evidence_a_paper_is_working(checkout):
    for add in (add_parts, add_study, add_evidence):
        add(checkout)
    assert status(PAPER, package=checkout).state == "working"


def test_a_part_paper_that_names_no_part_is_never_working(checkout):
    add_study(checkout)
    add_evidence(checkout)
    found = status(replace(PAPER, parts=()), package=checkout)
    assert found.state == "partial"
    assert "no part is named yet" in found.reasons


def test_a_study_paper_needs_no_part(checkout):
    add_study(checkout)
    add_evidence(checkout)
    assert status(replace(PAPER, form="study", parts=()), package=checkout).state == "working"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read"),
        ("{}", "holds no verdict"),
        ('{"verdict": ""}', "holds no verdict"),
        ('["verdict"]', "holds no verdict"),
    ],
)
def test_evidence_without_a_readable_verdict_does_not_count(checkout, text, complaint):
    for add in (add_parts, add_study):
        add(checkout)
    add_evidence(checkout, text)
    found = status(PAPER, package=checkout)
    assert found.state == "partial" and not found.has_evidence
    assert complaint in found.reasons[-1]


@pytest.mark.parametrize(
    "text",
    [
        "wave: int = 1\nWave = wave\n",
        "async def wave(): ...\nclass Wave: ...\n",
        "wave, Wave = 1, 2\n",
    ],
)
def test_every_kind_of_top_level_definition_counts(checkout, text):
    add_parts(checkout, text)
    assert status(PAPER, package=checkout).parts_missing == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("def other():\n    wave = 1\n    class Wave: ...\n", "waves.py"),
        ("wave: int\n# class Wave\n", "waves.py"),
        ("from elsewhere import wave, Wave\n", "waves.py"),
        ("x.wave = x[Wave] = 1\n", "waves.py"),
        ("def wave(: ...\n", "waves.py"),
        ("def wave(): ...\nclass Wave: ...\n", "_waves.py"),
    ],
)
def test_names_that_the_room_would_not_export_do_not_count(checkout, text, name):
    add_parts(checkout, text, name)
    assert status(PAPER, package=checkout).parts_present == ()


def test_names_that_the_room_imports_in_its_own_front_count(checkout):
    add_parts(checkout, "from thalweg.optim._waves import Wave, ripple as wave\n", "__init__.py")
    assert status(PAPER, package=checkout).parts_missing == ()


def test_a_part_may_be_named_inside_a_module(checkout):
    add_parts(checkout)
    paper = replace(PAPER, parts=("thalweg.optim.waves.Wave", "thalweg.optim.waves.tide"))
    assert status(paper, package=checkout).parts_missing == ("thalweg.optim.waves.tide",)


def test_an_edited_file_is_read_again(checkout):
    add_parts(checkout, "wave = 1\n")
    assert status(PAPER, package=checkout).parts_missing == ("thalweg.optim.Wave",)
    add_parts(checkout, "wave = 1\nWave = 2\n# a longer file\n")
    assert status(PAPER, package=checkout).parts_missing == ()


def test_evidence_lies_in_the_root_of_a_checkout_and_in_the_package_once_installed(checkout, tmp_path):
    assert evidence_folder(checkout) == tmp_path / "evidence"
    installed = tmp_path / "site-packages" / "thalweg"
    assert evidence_folder(installed) == installed / "evidence"


def test_read_evidence_gives_the_content_or_none(tmp_path):
    assert read_evidence("some-paper", tmp_path) is None
    (tmp_path / "some-paper.json").write_text(json.dumps({"verdict": "not reproduced", "effect": 1.02}))
    assert read_evidence("some-paper", tmp_path) == {"verdict": "not reproduced", "effect": 1.02}


def test_a_key_will_do_and_an_unknown_one_is_refused(checkout):
    assert status("grokfast", package=checkout).state == "planned"
    with pytest.raises(UnknownPaper):
        status("grokfsat", package=checkout)


def test_the_real_catalog_agrees_with_what_can_be_imported():
    import importlib

    for entry in load():
        for part in status(entry).parts_present:
            module, _, name = part.rpartition(".")
            assert hasattr(importlib.import_module(module), name), part
