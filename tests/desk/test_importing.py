"""Imports from files: a row is taken whole or named and left out, and what was confirmed stays."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import threading
import time

import pytest

from thalweg.desk.cli import _troubles
from thalweg.desk.database import Database
from thalweg.desk.importing import BATCH, import_file
from thalweg.desk.json_array import AT_ONCE, Broken, items
from thalweg.desk.library import Library
from thalweg.desk.problems import Problems


@pytest.fixture
def library(tmp_path):
    return Library(Database(tmp_path / "desk"))


def rows(count, words=3):
    return [
        {"id": f"2401.{number:05}", "title": f"Paper {number}", "abstract": "words " * words}
        for number in range(count)
    ]


def lines(count, words=3):
    return "".join(json.dumps(row) + "\n" for row in rows(count, words))


def written(folder, name, text):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["papers.jsonl", "papers.jsonl.gz"])
def test_every_line_is_a_paper_and_the_second_time_changes_nothing(tmp_path, library, name):
    path = written(tmp_path, name, lines(2 * BATCH + 7))
    seen = []
    report = import_file(library, path, progress=lambda done, count: seen.append((done, count)))
    assert (report.rows, report.new, report.bad) == (2 * BATCH + 7, 2 * BATCH + 7, 0)
    assert seen == sorted(seen) and seen[-1] == (path.stat().st_size, 2 * BATCH + 7)
    again = import_file(library, path)
    assert (again.new, again.newer, again.known) == (0, 0, 2 * BATCH + 7)
    assert [one.title for one in library.stream()] == [row["title"] for row in rows(2 * BATCH + 7)]


@pytest.mark.parametrize(("name", "packed"), [("papers.jsonl.gz", False), ("papers.jsonl", True)])
def test_a_file_is_unpacked_by_what_it_holds_whatever_its_name(tmp_path, library, name, packed):
    path, data = tmp_path / name, lines(3).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert import_file(library, path).new == 3


def test_a_pipe_is_read_to_its_end(tmp_path, library):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(lines(BATCH + 3),))
    writer.start()
    report = import_file(library, path)
    writer.join()
    assert (report.new, report.failed) == (BATCH + 3, "")


def test_the_metadata_that_arxiv_gives_away_is_taken_as_it_is(tmp_path, library):
    row = {
        "id": "0704.0001",
        "submitter": "Somebody",
        "authors": "C. Bal\\'azs, E. L. Berger, P. M. Nadolsky and others",
        "title": "Calculation of prompt\n  diphoton production",
        "categories": "hep-ph math.CO",
        "license": None,
        "abstract": "  A fully differential calculation.\n",
        "versions": [
            {"version": "v1", "created": "Mon, 2 Apr 2007 19:18:42 GMT"},
            {"version": "v2", "created": "Tue, 24 Jul 2007 20:10:27 GMT"},
        ],
        "update_date": "2008-11-26",
        "authors_parsed": [["Bal\\'azs", "C.", ""], ["Berger", "E. L.", "Jr"], [], [None, 3]],
    }
    odd = row | {"id": "0704.0002", "versions": "v1", "update_date": None}
    path = written(tmp_path, "arxiv-metadata-oai-snapshot.json", f"{json.dumps(row)}\n{json.dumps(odd)}\n")
    assert import_file(library, path).new == 2
    found = library.by_id("0704.0001")
    assert (found.date, found.authors) == ("2007-04-02", ("C. Bal\\'azs", "E. L. Berger Jr"))
    assert found.title == "Calculation of prompt diphoton production"
    updated = dict(map(tuple, library.database.rows("SELECT id, updated FROM imported")))
    assert updated == {"0704.0001": "2007-07-24T20:10:27Z", "0704.0002": "2007-04"}


def test_a_bad_line_is_named_by_its_number_and_the_others_are_kept(tmp_path, library):
    bad = {
        2: b'{"id": "2401.99999", "title": "cut',
        4: b"[1, 2]",
        5: b"\xff\xfe broken bytes",
        7: b'{"id": "2401.99999", "title": "x", "authors": 3}',
        8: b"[" * 100_000,
        9: b'{"id": "2401.99999", "title": "\\ud800"}',
        11: b'"' + b"x" * (17 << 20) + b'"',
    }
    good = iter(lines(5).encode().splitlines())
    text = b"\n".join(bad.get(number) or next(good) for number in range(1, 13))
    problems = Problems(library.database)
    report = import_file(library, written(tmp_path, "papers.jsonl", text), problems=problems)
    assert (report.rows, report.new, report.bad) == (12, 5, 7)
    assert [int(one.split(":")[0].removeprefix("line ")) for one in report.named] == list(bad)
    assert "authors must be a list" in report.named[3] and "longer than 16 MiB" in report.named[6]
    assert {(one.source, one.what.split(":")[0]) for one in problems.all()} == {
        *(("import papers.jsonl", f"line {number}") for number in [*bad][:3]),
        ("import papers.jsonl", "7 of 12 rows were left out"),
    }
    import_file(library, written(tmp_path, "papers.jsonl", lines(5)), problems=problems)
    assert problems.all() == [], "once the file is put right"
    assert library.count() == 5


def test_thousands_of_bad_lines_are_counted_and_not_listed(tmp_path, library):
    problems = Problems(library.database)
    path = written(tmp_path, "papers.jsonl", "no\n" * 3000 + lines(2))
    report = import_file(library, path, problems=problems)
    assert (report.new, report.bad, len(report.named)) == (2, 3000, 20)
    assert len(problems.all()) == 4
    assert "3000 of 3002 rows were left out" in [one.what for one in problems.all()]


def test_a_file_that_breaks_off_keeps_what_came_before(tmp_path, library):
    whole = gzip.compress(lines(1500, words=200).encode(), compresslevel=1)
    path = tmp_path / "papers.jsonl.gz"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(ValueError, match=r"cannot be read beyond row \d+") as error:
        import_file(library, path)
    assert f"{library.count()} papers of it are kept" in str(error.value)
    assert BATCH < library.count() < 1500


def archive(number, **more):
    return {
        "paper_url": f"https://paperswithcode.com/paper/paper-{number}",
        "arxiv_id": f"1901.{number:05}",
        "title": f"Paper {number}",
        "abstract": "An abstract.",
        "url_abs": f"https://example.org/{number}",
        "authors": ["A. Author", "B. Author"],
        "date": "2019-01-31",
        "methods": [{"name": "Adam", "full_name": "Adam {, [ }, {"}],
    } | more


@pytest.mark.parametrize("indent", [None, 2])
def test_the_archive_of_papers_with_code_is_read_papers_and_links(tmp_path, library, indent):
    papers = [archive(1), archive(2, arxiv_id=None), archive(3, title=None), archive(4)]
    path = written(tmp_path, "papers-with-abstracts.json.gz", json.dumps(papers, indent=indent))
    report = import_file(library, path, "pwc")
    assert (report.new, report.bad) == (3, 1) and "item 3: title" in report.named[0]
    found = library.by_id("pwc:paper-2")
    assert (found.link, found.date, len(found.authors)) == ("https://example.org/2", "2019-01-31", 2)
    assert library.by_id("1901.00001").link == "https://arxiv.org/abs/1901.00001"
    links = [
        {
            "paper_url": one["paper_url"],
            "paper_arxiv_id": one["arxiv_id"],
            "repo_url": where,
            "is_official": how,
        }
        for one, where, how in [
            (papers[0], "https://github.com/a/other", False),
            (papers[0], "https://github.com/a/own", True),
            (papers[1], "https://github.com/b/own", True),
            (papers[3], "javascript:alert(1)", True),
            (archive(99), "https://github.com/c/own", True),
        ]
    ]
    path = written(tmp_path, "links-between-papers-and-code.json", json.dumps(links, indent=indent))
    report = import_file(library, path, "pwc")
    assert (report.rows, report.linked, report.bad) == (5, 2, 1)
    assert library.by_id("1901.00001").repository == "https://github.com/a/own"
    assert library.by_id("pwc:paper-2").repository == "https://github.com/b/own"


def test_an_array_is_streamed_past_what_is_broken_in_it(tmp_path):
    good = [{"a": "x" * 700, "b": [1, {"c": number}]} for number in range(5000)]
    parts = [json.dumps(one) for one in good]
    parts[1000] = '{"a": "quote " inside", "b": []}'
    parts[3000] = '{"a": nope}'
    parts[4000] = "[" * 50_000
    path = written(tmp_path, "array.json", "[" + ",\n".join(parts) + "]")
    assert path.stat().st_size > 3 * AT_ONCE
    with path.open() as file:
        read = list(items(file))
    broken = [one for one in read if isinstance(one, Broken)]
    assert 3 <= len(broken) <= 6
    kept = [one for one in read if not isinstance(one, Broken)]
    assert kept == [one for number, one in enumerate(good) if number not in (1000, 3000, 4000)]


@pytest.mark.parametrize(
    ("text", "why"), [("", r"begins with \["), ('{"a": 1}', r"begins with \["), ("[1, 2", None)]
)
def test_what_is_no_whole_array_is_said(tmp_path, text, why):
    path = written(tmp_path, "array.json", text)
    with path.open() as file:
        if why is None:
            assert list(items(file))[-1] == Broken("the file ends before the array does")
        else:
            with pytest.raises(ValueError, match=why):
                list(items(file))


def command(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "thalweg", "papers", "import", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        **options,
    )


def test_an_import_that_is_killed_keeps_whole_batches_and_the_next_ends_it(tmp_path):
    count = 30 * BATCH
    path = written(tmp_path, "papers.jsonl", lines(count))
    for attempt in range(10):  # on a busy machine the kill may come too late
        folder = tmp_path / f"desk {attempt}"
        process = command(path, "--data", folder)
        library = Library(Database(folder))
        while not library.count() and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        said = process.communicate()[0]
        kept = library.count()
        if kept < count:
            break
    assert 0 < kept < count and kept % BATCH == 0, said
    assert kept == len(list(library.stream())), "the counts are of what is there"
    process = command(path, "--data", folder)
    said = process.communicate()[0]
    assert process.returncode == 0 and f"{count - kept} new, 0 newer versions, {kept} known" in said
    assert [one.title for one in library.stream()] == [f"Paper {number}" for number in range(count)]


def test_a_full_disk_is_said_and_what_was_confirmed_stays(tmp_path):
    path, folder = written(tmp_path, "papers.jsonl", lines(8 * BATCH, words=300)), tmp_path / "desk"

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))

    process = command(path, "--data", folder, preexec_fn=no_room)
    said = process.communicate()[0]
    assert process.returncode == 2, said
    assert "cannot be written" in said and "what was confirmed before is kept" in said
    assert "Traceback" not in said
    library = Library(Database(folder))
    kept = library.count()
    assert 0 < kept < 8 * BATCH and kept % BATCH == 0
    assert library.database.rows("PRAGMA integrity_check")[0][0] == "ok"
    process = command(path, "--data", folder)
    assert f"{8 * BATCH - kept} new, 0 newer versions, {kept} known" in process.communicate()[0]


ITEM = {"paper_url": "https://paperswithcode.com/paper/x", "title": "A paper of the archive"}


@pytest.mark.parametrize(
    ("text", "form", "why"),
    [
        ("no\n" * 3, "jsonl", "nothing in papers.json is a paper"),
        ("", "jsonl", "nothing in papers.json is a paper"),
        (json.dumps([ITEM], indent=1), "jsonl", "which --format pwc reads"),
        (json.dumps(rows(2)), "jsonl", "it is a JSON array; what is read is one object a line"),
        (json.dumps([ITEM])[:-1], "pwc", "the file ends before the array does; what came before is kept"),
    ],
)
def test_a_file_that_gives_nothing_or_breaks_off_ends_with_an_error(tmp_path, text, form, why):
    path = written(tmp_path, "papers.json", text)
    process = command(path, "--format", form, "--data", tmp_path / "desk")
    said = process.communicate()[0]
    assert process.returncode == 2 and why in said and "Traceback" not in said
    assert ("--format pwc" in said) == ("paper_url" in text and form == "jsonl")
    assert Library(Database(tmp_path / "desk")).count() == (form == "pwc")


def test_troubles_of_an_import_go_after_a_week_and_are_one_line_a_file_at_start(tmp_path, library):
    problems = Problems(library.database)
    for name in ("old.jsonl", "new.jsonl"):
        import_file(library, written(tmp_path, name, "no\n" * 9), problems=problems)
    problems.report("ingest", "once")
    assert [line.split(":")[0] for line in _troubles(problems.all())] == [
        "ingest",
        "import new.jsonl",
        "import old.jsonl",
    ]
    assert _troubles(problems.all())[1].endswith("9 of 9 rows were left out (and 3 more on /health)")
    with library.database.write() as on:
        on.execute("UPDATE problems SET last = last - 8 * 86400 WHERE source != 'import new.jsonl'")
    assert {one.source for one in problems.all()} == {"ingest", "import new.jsonl"}


def test_the_command_names_what_it_left_out(tmp_path):
    path = written(tmp_path, "papers.jsonl", lines(3) + "no\n")
    process = command(path, "--data", tmp_path / "desk")
    said = process.communicate()[0]
    assert process.returncode == 0
    assert "4 rows: 3 new" in said and "left out: line 4: no JSON" in said
    process = command(tmp_path / "nothing.jsonl", "--data", tmp_path / "desk")
    assert "No such file" in process.communicate()[0] and process.returncode == 2
    process = command(path, "--format", "csv", "--data", tmp_path / "desk")
    assert "--format must be one of jsonl, pwc" in process.communicate()[0]
