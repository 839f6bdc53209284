"""Evidence is written whole or not at all, and read only if it is well formed and follows from its scores."""

import json
import os
import re
from copy import deepcopy

import pytest

from thalweg.studies.evidence import load_evidence, write_evidence
from thalweg.studies.runner import run_study


@pytest.fixture
def folder(toys, tmp_path):
    run_study("toy-quadratic", studies=toys, folder=tmp_path / "evidence")
    return tmp_path / "evidence"


def edited(folder, edit):
    path = folder / "toy-quadratic.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def arm(content, index=0):
    return content["settings"]["tuned"]["arms"][index]


@pytest.mark.parametrize("failing", ["dump", "replace", "fsync"])
def test_a_write_that_fails_in_the_middle_leaves_the_old_file_and_no_other(folder, monkeypatch, failing):
    before = (folder / "toy-quadratic.json").read_bytes()
    content = load_evidence("toy-quadratic", folder)

    def half(*arguments, **options):
        if failing == "dump":
            arguments[1].write('{"paper": "toy')
            arguments[1].flush()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json if failing == "dump" else os, failing, half)
    with pytest.raises(OSError, match="No space left"):
        write_evidence({**content, "notes": "changed"}, folder)
    assert [file.name for file in folder.iterdir()] == ["toy-quadratic.json"]
    assert (folder / "toy-quadratic.json").read_bytes() == before


def test_malformed_content_is_never_written(folder):
    before = (folder / "toy-quadratic.json").read_bytes()
    content = deepcopy(load_evidence("toy-quadratic", folder))
    arm(content)["scores"][0] = float("nan")
    with pytest.raises(ValueError, match="scores"):
        write_evidence(content, folder)
    assert (folder / "toy-quadratic.json").read_bytes() == before


def test_what_was_never_measured_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_evidence("toy-quadratic", tmp_path)


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda c: c.pop("claim"), "claim"),
        (lambda c: c.update(paper=""), "paper"),
        (lambda c: c.update(paper="another"), "paper"),
        (lambda c: c.update(seeds=[0, 1]), "seeds"),
        (lambda c: c.update(seeds=[0, 1, 1]), "seeds"),
        (lambda c: c.update(seeds=[0, 1, 2, 3]), "settings.tuned.arms[0].scores"),
        (lambda c: c.update(minutes="two"), "minutes"),
        (lambda c: c.update(headline="none"), "headline"),
        (lambda c: c.update(verdict="excellent"), "verdict"),
        (lambda c: c.update(verdict="not reproduced"), "verdict"),
        (lambda c: c.update(effect=9.0), "effect"),
        (lambda c: c.update(settings=[]), "settings"),
        (lambda c: c["settings"]["tuned"].update(verdict="not reproduced"), "settings.tuned.verdict"),
        (lambda c: c["settings"]["tuned"].update(effect=1.0), "settings.tuned.effect"),
        (lambda c: c["settings"]["tuned"].update(rules={"reproduced": "good"}), "settings.tuned.rules"),
        (lambda c: c["settings"]["tuned"].update(axes=["steps"]), "settings.tuned.axes"),
        (lambda c: c["settings"]["tuned"]["arms"].reverse(), "settings.tuned.arms"),
        (lambda c: arm(c).pop("optimizer"), "settings.tuned.arms[0].optimizer"),
        (lambda c: arm(c, 1).update(role="winner"), "settings.tuned.arms[1].role"),
        (lambda c: arm(c, 1)["tried"].pop(), "settings.tuned.arms[1].tried"),
        (lambda c: arm(c)["scores"].__setitem__(0, None), "settings.tuned.arms[0].scores"),
        (lambda c: arm(c, 1)["scores"].__setitem__(0, 1e-9), "settings.tuned.effects"),
        (lambda c: arm(c)["curve"]["low"].pop(), "settings.tuned.arms[0].curve"),
        (lambda c: arm(c)["curve"].update(x=[0.0] * 201), "settings.tuned.arms[0].curve"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_field(folder, edit, field):
    edited(folder, edit)
    with pytest.raises(ValueError, match=rf"toy-quadratic\.json: field '{re.escape(field)}'"):
        load_evidence("toy-quadratic", folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "null", "\xff"])
def test_what_is_no_object_is_refused_by_name(folder, text):
    (folder / "toy-quadratic.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"toy-quadratic\.json: "):
        load_evidence("toy-quadratic", folder)
