"""Papers from files: JSON lines, and the archive that Papers with Code left; read as a stream, however large.

A row that cannot be read or is not a paper is counted, named by its line and left out; the others are kept, a
batch at a time, each on the disk before the next is read.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from thalweg._core.checks import check_choice
from thalweg.desk.arxiv_dump import row_of
from thalweg.desk.imported import Imported, arxiv_id, checked
from thalweg.desk.json_array import BROKE_OFF, Broken, items
from thalweg.desk.library import Added, Library
from thalweg.desk.problems import Problems

__all__ = ["FORMATS", "Report", "import_file"]

FORMATS = ("jsonl", "pwc")
BATCH = 1000  # papers that are kept or lost together
# Papers of all days touch the whole index by day: it is kept in memory, and written to its place less often.
BULK = ("PRAGMA cache_size = -64000", "PRAGMA wal_autocheckpoint = 16000")
LONGEST = 16 << 20  # bytes of a line
NAMED = 20  # bad rows that are named one by one; the others are counted
ON_HEALTH = 3  # of these, on the health page
PACKED = b"\x1f\x8b"  # with which gzip begins
BEGINNING = 1 << 16  # bytes in which one sees what a file holds
UNREADABLE = (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError)
Row = Imported | tuple[str, str]  # a paper, or the id of one and where its code is


@dataclass
class Report:
    """What came of an import; ``bad`` rows were left out, the first of them are in ``named``.

    ``failed`` says why it is no success: nothing of the file is a paper, or it breaks off.
    """

    rows: int = 0
    new: int = 0
    newer: int = 0
    known: int = 0
    linked: int = 0
    bad: int = 0
    named: list[str] = field(default_factory=list)
    failed: str = ""

    def refuse(self, where: str, why: str) -> None:
        """Count a row that was left out."""
        self.bad += 1
        if self.bad <= NAMED:
            self.named.append(f"{where}: {why}")

    def add(self, added: Added) -> None:
        """Count a batch that is kept."""
        self.new += added.new
        self.newer += added.newer
        self.known += added.known


def import_file(
    library: Library,
    path: str | Path,
    form: str = "jsonl",
    *,
    problems: Problems | None = None,
    progress: Callable[[int, int], None] = lambda bytes_read, rows: None,
) -> Report:
    """Import a file or a pipe, which may be compressed by gzip; running it again changes nothing.

    Args:
        form: ``jsonl``, one paper a line, or ``pwc``, an array of papers or of links from the archive.
        problems: told of rows that were left out.
        progress: called after each batch with bytes read of the file and rows read.

    Raises:
        ValueError: the file cannot be read to its end, or is no such file; what came before is kept.
        sqlite3.Error: the database cannot be written, say because the disk is full; what came before is kept.
    """
    check_choice("form", form, FORMATS)
    path, report = Path(path), Report()
    for setting in BULK:
        library.database.connection.execute(setting)
    try:
        with path.open("rb") as raw:
            file = _unpacked(raw)
            rows = _lines(file, report) if form == "jsonl" else _pwc(file, report)
            for batch in _batches(rows):
                papers = [one for one in batch if isinstance(one, Imported)]
                links = dict(one for one in batch if isinstance(one, tuple))
                if papers:
                    report.add(library.add(papers))
                if links:
                    report.linked += library.set_repositories(links)
                progress(raw.tell() if raw.seekable() else 0, report.rows)
    except UNREADABLE as error:
        report.refuse(f"after row {report.rows}", str(error))
        kept = report.new + report.newer + report.known
        raise ValueError(
            f"{path.name} cannot be read beyond row {report.rows}: {error}; {kept} papers of it are kept"
        ) from None
    finally:
        _tell(problems, path.name, report)
    if report.bad == report.rows:
        report.failed = f"nothing in {path.name} is a paper{_hint(path, form)}"
    progress(path.stat().st_size, report.rows)
    return report


def _unpacked(raw: io.BufferedReader) -> IO[bytes]:
    """By its first bytes: browsers unpack what they load and keep its name."""
    return gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == PACKED else raw  # type: ignore[return-value]


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows in batches; those before a place where the file cannot be read come before the error."""
    batch: list[Row] = []
    failure: Exception | None = None
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except UNREADABLE as error:
        failure = error
    if batch:
        yield batch
    if failure is not None:
        raise failure


def _tell(problems: Problems | None, name: str, report: Report) -> None:
    if problems is None:
        return
    source = f"import {name}"
    problems.solved(source)  # what an earlier try left out
    for one in report.named[:ON_HEALTH]:
        problems.report(source, one)
    if report.bad > ON_HEALTH:
        problems.report(source, f"{report.bad} of {report.rows} rows were left out")


def _hint(path: Path, form: str) -> str:
    """What the file seems to hold instead of JSON lines."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as raw:
            start = _unpacked(raw).read(BEGINNING).lstrip()
    except (*UNREADABLE, OSError):
        return ""
    if form != "jsonl" or not start.startswith(b"["):
        return ""
    if b'"paper_url"' in start:
        return ": it is an array of the Papers with Code archive, which --format pwc reads"
    return ": it is a JSON array; what is read is one object a line"


def _lines(file: IO[bytes], report: Report) -> Iterator[Imported]:
    for number in itertools.count(1):
        line = file.readline(LONGEST)
        if not line:
            return
        if len(line) == LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST)
            report.rows += 1
            report.refuse(f"line {number}", f"longer than {LONGEST >> 20} MiB")
            continue
        if not line.strip():
            continue
        report.rows += 1
        try:
            yield checked(row_of(json.loads(line)))
        except (ValueError, RecursionError) as error:
            report.refuse(f"line {number}", _why(error))


def _pwc(file: IO[bytes], report: Report) -> Iterator[Row]:
    text = io.TextIOWrapper(file, encoding="utf8")
    try:
        for number, one in enumerate(items(text), 1):
            report.rows += 1
            try:
                yield from _archived(one)
            except ValueError as error:
                if one == Broken(BROKE_OFF):
                    report.failed = f"{BROKE_OFF}; what came before is kept"
                report.refuse(f"item {number}", _why(error))
    finally:
        text.detach()  # or it would close the file


def _archived(one: Any) -> Iterator[Row]:
    """What an item of the archive says: a paper, where its code is, or nothing that is kept here."""
    if isinstance(one, Broken):
        raise ValueError(one.why)
    if not isinstance(one, dict):
        raise ValueError(f"an item must be an object, got {ascii(one)[:80]}")
    if "repo_url" not in one:
        yield _paper(one)
    elif one.get("is_official") and (name := _archive_id(one, "paper_arxiv_id")):
        yield name, checked({"id": name, "title": "-", "repository": one["repo_url"]}).repository


def _paper(one: dict[str, Any]) -> Imported:
    """A paper of ``papers-with-abstracts``; without an arXiv id it is known by its name in the archive."""
    name = _archive_id(one, "arxiv_id")
    return checked(
        {
            "id": name,
            "title": one.get("title"),
            "abstract": one.get("abstract") or one.get("short_abstract"),
            "authors": one.get("authors"),
            "published": one.get("date"),
            "link": "" if arxiv_id(name) else one.get("url_abs"),
        },
        source="pwc",
    )


def _archive_id(one: dict[str, Any], field: str) -> str:
    if isinstance(given := one.get(field), str) and (found := arxiv_id(given)):
        return found
    address = one.get("paper_url")
    name = re.fullmatch(r"https?://[^/]*paperswithcode\.com/paper/([\w.-]+)", address or "")
    return f"pwc:{name[1]}" if name else ""


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, RecursionError):
        return "no JSON: nested too deeply"
    return str(error) or type(error).__name__
