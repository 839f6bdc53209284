"""Whether imported papers can be read and searched, and when they were last fetched, for the health page."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator

from starlette.datastructures import State

from thalweg.desk.check import Check
from thalweg.desk.database import Database
from thalweg.desk.fetching import fetches
from thalweg.desk.fresh_papers import MOST
from thalweg.desk.imported_search import index_folder
from thalweg.desk.index.search_index import SearchIndex, UnusableIndex, stamp
from thalweg.desk.library import Library
from thalweg.desk.stored_values import damaged_rows

NAMED = 5  # damaged papers that are named
READ_WHOLE = 1 << 26  # bytes: a larger index is read from end to end more seldom
OFTEN = 600.0  # seconds
_checked: dict[str, float] = {}


def checks(state: State) -> Iterator[Check]:
    """The library, its search index, the last fetch."""
    library = state.shelf.library
    if library is None:
        return
    count = library.count()
    newest = library.newest(1)
    latest = f", the latest of {newest[0].date or 'an unknown day'}" if newest else ""
    damaged = damaged_rows(library.database, "imported", "id", NAMED)
    if damaged:
        what = f"{count:,}{latest}; damaged are the rows of {', '.join(damaged)}: import these again"
        yield Check("imported papers", "bad", what)
    else:
        yield Check("imported papers", "good", f"{count:,}{latest}")
    yield _index(library, count)
    yield _fetched(library.database)


def _index(library: Library, count: int) -> Check:
    folder = index_folder(library)
    if not stamp(folder):
        behind = count > MOST
        what = "not built: thalweg papers index builds it" if behind else "not built, and not needed yet"
        return Check("search index", "warn" if behind else "good", what)
    try:
        index = SearchIndex(folder)
        _check(index)
    except UnusableIndex as error:
        return Check("search index", "bad", str(error))
    what = f"holds {index.count:,} papers"
    if index.covered:
        what += f", {index.covered:,} of them with a vector of MiniLM"
    if library.behind(index.change, index.last, MOST + 1) > MOST:
        late = f"more than {MOST:,} of {count:,} came or changed later: thalweg papers index"
        return Check("search index", "warn", f"{what}; {late}")
    return Check("search index", "good", what)


def _check(index: SearchIndex) -> None:
    """Read an index to its end, a large one once in ``OFTEN`` seconds."""
    now = time.monotonic()
    if index.size <= READ_WHOLE or now - _checked.get(index.stamp, -OFTEN) >= OFTEN:
        index.check()
        _checked.clear()
        _checked[index.stamp] = now


def _fetched(database: Database) -> Check:
    known = fetches(database)
    if not known:
        what = "nothing was ever fetched; thalweg papers fetch --topic WORDS does so when asked"
        return Check("fetch", "good", what)
    latest = max(one.until for one in known)
    last = datetime.datetime.fromisoformat(latest).replace(tzinfo=datetime.UTC).timestamp()
    open_ = [one for one in known if not one.done]
    if open_:
        command = open_[0].command if len(open_) == 1 else "thalweg papers fetch --daily"
        what = f"interrupted: {', '.join(one.name for one in open_)}; it goes on by {command}; the last began"
        return Check("fetch", "warn", what, last)
    return Check("fetch", "good", f"{len(known)} topics and categories; the last began", last)
