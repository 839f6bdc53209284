"""Library text against the files it was read from."""

import string
import sysconfig
from pathlib import Path

import pytest
import torch

from thalweg.tasks import VOCABULARY, library_text
from thalweg.tasks import text as text_module

TEXT = library_text(max_characters=300_000)


def test_vocabulary_is_tab_newline_and_printable_ascii():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 97
    assert set(VOCABULARY) == set(string.printable) - set("\r\x0b\x0c")


def test_decode_inverts_encode_on_every_character():
    tokens = TEXT.encode(VOCABULARY)
    assert tokens.tolist() == list(range(97))
    assert TEXT.decode(tokens) == VOCABULARY


def test_unknown_characters_are_named():
    with pytest.raises(ValueError, match="got 'é'"):
        TEXT.encode("café")


def test_text_begins_with_the_first_module_and_ends_at_the_limit():
    library = Path(sysconfig.get_paths()["stdlib"])
    first = (library / "abc.py").read_text(encoding="utf-8")
    assert first.isascii() and TEXT.decode(TEXT.train[: len(first)]) == first
    assert len(TEXT.train) == 270_000 and len(TEXT.test) == 30_000


def test_whole_text_is_large_and_in_limits():
    whole = library_text()
    assert 1_500_000 < len(whole.train) + len(whole.test) <= 2_000_000
    assert torch.equal(whole.train[:270_000], TEXT.train)


def test_targets_are_the_inputs_one_further():
    inputs, targets = TEXT.batch("test", 7, 50, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (7, 50) and inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    everything = TEXT.decode(TEXT.test)
    for row, target in zip(inputs, targets, strict=True):
        assert TEXT.decode(row) + TEXT.decode(target[-1:]) in everything


def test_windows_reach_the_first_and_the_last_character():
    tiny = library_text(max_characters=20, test_fraction=0.5)
    inputs, targets = tiny.batch("test", 200, 9, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in inputs.tolist()} == {tuple(tiny.test[:9].tolist())}
    inputs, targets = tiny.batch("test", 200, 8, torch.Generator().manual_seed(0))
    assert {row[0] for row in inputs.tolist()} >= {int(tiny.test[0]), int(tiny.test[1])}
    assert {row[-1] for row in targets.tolist()} == {int(tiny.test[8]), int(tiny.test[9])}


def test_generator_decides_the_batch():
    first, again = (TEXT.batch("train", 4, 16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], again[0])


def test_library_without_sources_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(text_module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="no library sources"):
        library_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TEXT.batch("validation", 1, 1), "split must be one of test, train; got 'validation'"),
        (
            lambda: TEXT.batch("test", 1, 30_000),
            "context must be below the 30000 characters of 'test', got 30000",
        ),
        (lambda: library_text(test_fraction=0), r"test_fraction must be in \(0, 1\), got 0"),
        (lambda: library_text(max_characters=1), "max_characters must be an integer >= 2, got 1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
