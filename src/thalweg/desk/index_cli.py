"""``thalweg papers index``: the search index over imported papers, built without asking while small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from thalweg._core.terminal import console, progress_bar, user_errors
from thalweg.desk.encoding_cli import AFTER_IMPORT, MEANINGS, encode
from thalweg.desk.ingest_cli import COMMAND, Data, opened_desk

if TYPE_CHECKING:
    from thalweg.desk.library import Library

SMALL = 20_000  # papers that are indexed after every import: a few seconds
STAGES = ("words", "lists", "vectors")


def index(
    meaning: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in MEANINGS.items()) + ".")
    ] = "some",
    data: Data = None,
) -> None:
    """Build the search index over all imported papers; searches go on with the old one meanwhile."""
    screen = console()
    with user_errors(COMMAND), opened_desk(data) as (library, _):
        _join(library, screen)
        encode(library, screen, meaning)
        _build(library, screen, sentences=meaning != "none")


def keep_up(library: Library, screen: Console) -> None:
    """After an import: build the index of a small library, say for a large one when it has fallen behind."""
    from thalweg.desk.fresh_papers import MOST
    from thalweg.desk.imported_search import index_folder
    from thalweg.desk.index.search_index import SearchIndex, UnusableIndex

    _join(library, screen)
    try:
        last, change = (found := SearchIndex(index_folder(library))).last, found.change
        sentences = found.wants_sentences
    except UnusableIndex:
        last, change, sentences = 0, -1, True
    count = library.count()
    if change == library.newest_change() or not count:
        return
    if count <= SMALL:
        encode(library, screen, "some" if sentences else "none", AFTER_IMPORT)
        _build(library, screen, sentences)
    elif library.behind(change, last, MOST + 1) > MOST:
        screen.print(f"more than {MOST} papers came or changed since the index: thalweg papers index")


def _join(library: Library, screen: Console) -> None:
    if joined := library.join_twins():
        screen.print(f"papers that were stored twice and are one now: {joined}")


def _build(library: Library, screen: Console, sentences: bool) -> None:
    from thalweg.desk.imported_search import rebuild

    total = library.count()
    with progress_bar(screen, transient=True, disable=not screen.is_terminal) as bar:
        rows = {stage: bar.add_task(stage, total=total) for stage in STAGES}
        count = rebuild(
            library, lambda stage, done: bar.update(rows[stage], completed=done), sentences=sentences
        )
    screen.print(f"{count} papers in the search index")
