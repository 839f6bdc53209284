"""Building never breaks what is being read, whatever ends it; damage is named, never passed on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from thalweg.desk.index import build as module
from thalweg.desk.index import search_index
from thalweg.desk.index.build import build
from thalweg.desk.index.search_index import SearchIndex, UnusableIndex, stamp

from .conftest import records

ROOT = Path(__file__).parents[3]
ENDLESS = f"""
import itertools, resource, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
from tests.desk.index.conftest import records
from thalweg.desk.index import build as module
from thalweg.desk.index import search_index
module.AT_ONCE = 100
if limit := int(sys.argv[2]):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
some = records(300)
papers = some if limit else (one._replace(row=i + 1) for i, one in enumerate(itertools.cycle(some)))
module.build(sys.argv[1], papers, progress=lambda stage, done: print(stage, done, flush=True))
"""


@pytest.fixture
def small(tmp_path):
    build(tmp_path, records(300), change=3, rank=16)
    return tmp_path


def found(index, paper):
    return next(iter(index.rankings(f"{paper.title} {paper.abstract}").by_word))


def test_it_knows_what_it_was_built_from(small):
    index = SearchIndex(small)
    assert (index.count, index.last, index.change) == (300, 599, 3)
    assert [found(index, one) for one in records(300)[::60]] == [one.row for one in records(300)[::60]]


def test_many_blocks_give_what_one_gives(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 37)
    build(tmp_path / "other", records(300), rank=16)
    one, many = SearchIndex(small), SearchIndex(tmp_path / "other")
    for paper in records(300)[::40]:
        assert one.rankings(paper.title).by_word == many.rankings(paper.title).by_word
        near, same = (one.near(paper.title, paper.abstract), many.near(paper.title, paper.abstract))
        assert list(near) == list(same)


def test_one_killed_while_it_is_built_leaves_the_old_one_and_the_next_build_cleans_up(small):
    before = stamp(small)
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(small), "0"], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if int(line.split()[1]) >= 500:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stamp(small) == before
    assert sum(one.is_dir() for one in small.iterdir()) == 2
    assert found(SearchIndex(small), records(300)[5]) == records(300)[5].row
    build(small, records(50, seed=1), rank=16)
    assert [one.name for one in small.iterdir() if one.is_dir()] == [stamp(small)]
    assert SearchIndex(small).count == 50


def test_a_full_disk_leaves_the_old_one_and_says_so(small):
    before = stamp(small)
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, str(small), "40000"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("OSError")
    assert stamp(small) == before
    assert [one.name for one in small.iterdir() if one.is_dir()] == [before]
    assert SearchIndex(small).count == 300


def test_a_reader_goes_on_while_and_after_it_is_rebuilt(small):
    old, paper = SearchIndex(small), records(300)[9]
    expected = old.rankings(paper.abstract)
    seen = []
    new = records(200, seed=2)
    build(small, new, rank=16, progress=lambda stage, done: seen.append(old.rankings(paper.abstract)))
    assert seen and all(one == expected for one in seen)
    assert old.rankings(paper.abstract) == expected
    assert not any((small / old.stamp).exists() for _ in [0])
    assert found(SearchIndex(small), new[9]) == new[9].row


def test_a_failure_while_papers_are_read_leaves_the_old_one(small):
    def broken():
        yield from records(20)
        raise RuntimeError("the database went away")

    before = sorted(os.listdir(small))
    with pytest.raises(RuntimeError, match="went away"):
        build(small, broken())
    assert sorted(os.listdir(small)) == before


def test_two_builds_at_once_are_refused(small):
    with (
        FileLock(small / "lock"),
        pytest.raises(ValueError, match="is being built by another process"),
    ):
        build(small, records(10))


def test_numbers_that_do_not_rise_are_refused(tmp_path):
    one, two = records(2)
    with pytest.raises(ValueError, match="rows of papers must rise, got 1 after 3"):
        build(tmp_path, [two, one])


NAMES = [
    *("terms.npy", "starts.npy", "holders.npy", "worths.npy", "known.npy", "directions.npy", "vectors.npy"),
    *("minilm.npy", "covered.npy", "scales.npy", "turn.npy", "parts.npy"),
    *("rows.npy", "days.npy", "rooms.npy", "topics.npy", "titles.npy", "labels.json", "index.json"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["truncated", "missing", "garbage"])
def test_a_damaged_file_is_named_and_nothing_else_is_raised(small, name, how):
    index = SearchIndex(small)
    path = small / index.stamp / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(content[:-7] if how == "truncated" else b"\xff" * len(content))
    with pytest.raises(UnusableIndex, match=r"damaged .*thalweg papers index builds it again"):
        SearchIndex(small).rankings("anything at all")


def test_numbers_out_of_range_in_a_sound_looking_file_are_damage_too(small):
    index = SearchIndex(small)
    path = small / index.stamp / "holders.npy"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:128] + b"\xff" * (len(content) - 128))
    manifest = small / index.stamp / "index.json"
    about = json.loads(manifest.read_text())
    manifest.unlink()
    manifest.write_text(json.dumps({**about, "sums": {}}))  # as one from before has none
    with pytest.raises(UnusableIndex, match="damaged"):
        SearchIndex(small).rankings(records(1)[0].abstract)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "index.json"])
def test_one_byte_that_is_another_one_is_noticed(small, name, monkeypatch):
    SearchIndex(small).check()
    path = small / SearchIndex(small).stamp / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(UnusableIndex, match=f"damaged .{name} is not what was written"):
        SearchIndex(small)
    monkeypatch.setattr(search_index, "_SMALL", 0)
    with pytest.raises(UnusableIndex, match="damaged"):
        SearchIndex(small).check()


def test_without_an_index_it_says_how_to_build_one(tmp_path):
    with pytest.raises(UnusableIndex, match="no search index yet: thalweg papers index"):
        SearchIndex(tmp_path / "none")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_papers_or_none_are_an_index_too(tmp_path, count):
    some = records(count)
    assert build(tmp_path, some) == count
    rankings = SearchIndex(tmp_path).rankings(some[0].title if some else "loss")
    assert rankings.by_word[:1] == [one.row for one in some[:1]]


def test_what_is_kept_in_memory_does_not_grow_with_the_number_of_papers(tmp_path):
    """Peak resident memory of 24,000 papers beyond that of 6,000, in a process of its own."""
    code = f"""
import itertools, resource, sys
sys.path[:0] = [{str(ROOT)!r}]
from tests.desk.index.conftest import records
from thalweg.desk.index import build as module, meaning
module.AT_ONCE, meaning.SAMPLE = 1000, 1000
some = records(1000)
for count in (6000, 24000):
    papers = (one._replace(row=i + 1) for i, one in zip(range(count), itertools.cycle(some)))
    module.build(sys.argv[1], papers, rank=16)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    few, many = map(int, done.stdout.split())
    assert many - few < 20_000 * (resource.getpagesize() // 4096)  # kB, of 15 MB of texts more
