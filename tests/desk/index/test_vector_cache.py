"""Vectors that took hours are kept: whatever ends the process, fills the disk or damages the file."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest

from thalweg.desk.index.vector_cache import NAME, Busy, VectorCache, text_number

HEAD, RECORD = 16, 8 + 4 + 384
ENDLESS = """
import itertools, pathlib, resource, sys
import numpy as np
from thalweg.desk.index.vector_cache import VectorCache
if limit := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
cache = VectorCache(pathlib.Path(sys.argv[1]))
with cache.alone():
    for batch in itertools.count():
        numbers = np.arange(100 * batch, 100 * (batch + 1), dtype=np.uint64)
        cache.add(numbers, np.random.default_rng(batch).standard_normal((100, 384)))
        print(batch, flush=True)
"""


def vectors(count, seed=0):
    found = np.random.default_rng(seed).standard_normal((count, 384)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def numbered(*numbers):
    return np.array(numbers, np.uint64)


def add(folder, numbers, some):
    cache = VectorCache(folder)
    with cache.alone():
        cache.add(numbers, some)
    return VectorCache(folder)


@pytest.fixture
def five(tmp_path):
    add(tmp_path, numbered(50, 10, 30), vectors(5)[:3])
    add(tmp_path, numbered(20, 40), vectors(5)[3:])
    return tmp_path


def test_what_was_added_is_there_for_the_next_one_within_half_a_percent(five):
    cache = VectorCache(five)
    assert len(cache) == 5 and not cache.damage
    assert cache.has(numbered(40, 41, 10)).tolist() == [True, False, True]
    found = cache.vectors(numbered(20, 50, 40)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert (found * vectors(5)[[3, 0, 4]]).sum(1).min() > 0.9999
    assert not VectorCache(five / "elsewhere").has(numbered(50)).any()


def test_another_text_has_another_number():
    assert text_number("one") == text_number("one") != text_number("One")
    assert isinstance(text_number("\ud800"), int)


@pytest.mark.parametrize("place", [0, 3, 9, 200, RECORD - 1])
def test_a_damaged_record_is_left_out_and_made_again(five, place):
    content = bytearray((five / NAME).read_bytes())
    content[HEAD + RECORD + place] ^= 0x10
    (five / NAME).write_bytes(content)
    cache = VectorCache(five)
    assert cache.damage == "1 of 5 vectors of MiniLM are damaged"
    assert cache.has(numbered(50, 10, 30, 20, 40)).tolist() == [True, False, True, True, True]
    again = add(five, numbered(10), vectors(1, 1))
    assert again.has(numbered(50, 10, 30, 20, 40)).all()
    again.keep(numbered(50, 10, 30, 20, 40))
    assert (len(VectorCache(five)), VectorCache(five).damage) == (5, "")


@pytest.mark.parametrize("content", [b"\xff" * 5000, b"thalweg MiniLM 0" + b"\x00" * 4000, b"thal"])
def test_a_file_of_something_else_is_thrown_away(five, content):
    (five / NAME).write_bytes(content)
    cache = VectorCache(five)
    assert len(cache) == 0 and "damaged, or of another version" in cache.damage
    again = add(five, numbered(1, 2), vectors(2))
    assert len(again) == 2 and not again.damage
    assert (five / NAME).stat().st_size == HEAD + 2 * RECORD


def test_what_cannot_be_read_is_damage_too(tmp_path):
    (tmp_path / NAME).mkdir()
    assert "cannot be read (Is a directory)" in VectorCache(tmp_path).damage


def test_a_batch_that_broke_off_is_forgotten_and_written_over(five):
    content = (five / NAME).read_bytes()
    (five / NAME).write_bytes(content[: HEAD + 4 * RECORD + 100])
    assert len(VectorCache(five)) == 4 and not VectorCache(five).damage
    again = add(five, numbered(60, 70), vectors(2))
    assert again.has(numbered(50, 10, 30, 20, 60, 70)).all() and not again.damage


def test_one_killed_while_adding_loses_no_batch_that_was_confirmed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path), "0"], stdout=subprocess.PIPE, text=True
    )
    confirmed = -1
    for line in process.stdout:
        confirmed = int(line)
        if confirmed >= 20:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache = VectorCache(tmp_path)
    assert cache.has(np.arange(100 * (confirmed + 1), dtype=np.uint64)).all() and not cache.damage
    assert add(tmp_path, numbered(10**9), vectors(1)).has(numbered(10**9, 2000)).all()


def test_a_full_disk_keeps_what_was_there_and_there_is_room_later(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, str(tmp_path), "130000"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("OSError")
    assert done.stdout.split() == ["0", "1", "2"]
    cache = VectorCache(tmp_path)
    assert (len(cache), cache.damage) == (300, "")
    assert (tmp_path / NAME).stat().st_size == HEAD + 300 * RECORD
    assert len(add(tmp_path, numbered(10**9), vectors(1))) == 301


def test_pruning_keeps_what_still_occurs_and_only_that(five):
    VectorCache(five).keep(numbered(40, 10, 999, 10))
    cache = VectorCache(five)
    assert cache.has(numbered(50, 10, 30, 20, 40)).tolist() == [False, True, False, False, True]
    found = cache.vectors(numbered(40)).astype(np.float32)[0]
    assert found @ vectors(5)[4] / np.linalg.norm(found) > 0.9999
    assert (five / NAME).stat().st_size == HEAD + 2 * RECORD


def test_only_one_adds_and_nobody_prunes_meanwhile(five):
    with VectorCache(five).alone():
        with pytest.raises(Busy, match="encoded by another process"), VectorCache(five).alone():
            pass
        VectorCache(five).keep(numbered(10))
    assert len(VectorCache(five)) == 5
