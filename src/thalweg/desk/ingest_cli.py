"""``thalweg papers fetch`` and ``thalweg papers import``: papers from arXiv and from files, when asked to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg._core.checks import check_choice, check_count
from thalweg._core.terminal import console, progress_bar, user_errors

if TYPE_CHECKING:
    from thalweg.desk.library import Library
    from thalweg.desk.problems import Problems

COMMAND = "thalweg papers"
Data = Annotated[
    Path | None,
    typer.Option(help="The desk's own data; the user's data folder by default.", show_default=False),
]


def fetch(
    topic: Annotated[str, typer.Option(help="Words that must all occur; phrases in quotation marks.")] = "",
    category: Annotated[str, typer.Option(help="An arXiv category such as cs.LG.")] = "",
    since: Annotated[str, typer.Option(help="Submitted on this day, such as 2026-11-01, or later.")] = "",
    most: Annotated[int, typer.Option("--max", help="How many papers at most, the latest ones.")] = 200,
    daily: Annotated[
        bool, typer.Option("--daily", help="What is new of all that was fetched before.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let --daily fetch this topic and category no more.")
    ] = False,
    data: Data = None,
    api: Annotated[str, typer.Option(hidden=True)] = "",
    feed: Annotated[str, typer.Option(hidden=True)] = "",
    delay: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fetch papers from arXiv, politely: one request in three seconds. Run again after an interruption."""
    screen = console()
    with user_errors(COMMAND), opened_desk(data) as (library, problems):
        if daily and (topic or category or since):
            raise ValueError(
                "--daily fetches what was fetched before; give no --topic, --category or --since with it"
            )
        if daily and forget:
            raise ValueError("--forget is for one topic, category or both; --daily is for all of them")
        if not (daily or topic.strip() or category):
            raise ValueError(
                "say what to fetch: --topic with at least one word, --category such as cs.LG, or both; "
                "--daily fetches what is new of all that was fetched before"
            )
        check_count("--max", most)
        from thalweg.desk.announcements import FEED
        from thalweg.desk.arxiv_source import ArxivSource
        from thalweg.desk.fetching import REPAIR, Fetcher
        from thalweg.desk.index_cli import keep_up
        from thalweg.desk.manners import API, DELAY, polite_client

        client = polite_client(
            api=api or API,
            delay=DELAY if delay is None else delay,
            told=lambda said: typer.echo(said, err=True),
        )
        with progress_bar(screen, transient=True, disable=not screen.is_terminal) as bar:
            rows: dict[str, Any] = {}

            def progress(name: str, done: int, total: int) -> None:
                row = rows[name] if name in rows else rows.setdefault(name, bar.add_task(name))
                bar.update(row, completed=done, total=total)

            fetcher = Fetcher(
                library, ArxivSource(client), problems=problems, feed=feed or FEED, progress=progress
            )
            if forget:
                fetcher.forget(topic, category)
                bar.console.print("forgotten: --daily fetches it no more; its papers stay")
                return
            outcomes = fetcher.daily() if daily else iter([fetcher.fetch(topic, category, since, most)])
            for one in outcomes:
                where = f", went on at {one.resumed}" if one.resumed else ""
                where += ", from the daily feed: the API refused" if one.feed else ""
                bar.console.print(
                    f"{one.name}: {one.added.new} new, {one.added.newer} newer versions, "
                    f"{one.added.known} known{where}",
                    markup=False,
                )
        keep_up(library, screen)
        if fetcher.damaged:
            raise ValueError(f"what is known of {', '.join(fetcher.damaged)} is damaged; {REPAIR}")
        if fetcher.failed:
            raise ValueError(
                f"arXiv did not answer to the end for {', '.join(fetcher.failed)}; the desk's health page "
                "says more, and the same command goes on"
            )


def import_papers(
    file: Annotated[Path, typer.Argument(help="JSON lines, or a JSON array of the archive; .gz too.")],
    form: Annotated[
        str, typer.Option("--format", help="jsonl, or pwc for files of the Papers with Code archive.")
    ] = "jsonl",
    data: Data = None,
) -> None:
    """Import papers from a file; running it again changes nothing."""
    screen = console()
    with user_errors(COMMAND), opened_desk(data) as (library, problems):
        from thalweg.desk.importing import FORMATS, import_file
        from thalweg.desk.index_cli import keep_up

        check_choice("--format", form, FORMATS)
        with progress_bar(screen, transient=True, disable=not screen.is_terminal) as bar:
            size = file.stat().st_size
            row = bar.add_task("bytes", total=size)
            report = import_file(
                library,
                file,
                form,
                problems=problems,
                progress=lambda done, rows: bar.update(row, completed=done, description=f"{rows} rows"),
            )
        keep_up(library, screen)
    screen.print(f"{report.rows} rows: {report.new} new, {report.newer} newer versions, {report.known} known")
    if report.linked:
        screen.print(f"{report.linked} papers have a link to their code now")
    for one in report.named:
        screen.print(f"left out: {one}", markup=False, soft_wrap=True)
    if report.bad:
        screen.print(f"rows left out: {report.bad}")
    if report.failed:
        with user_errors(COMMAND):
            raise ValueError(report.failed)


@contextmanager
def opened_desk(data: Path | None) -> Iterator[tuple[Library, Problems]]:
    """The library in the desk's database; a full disk, or a file that is no database, is said in one line."""
    try:
        from thalweg.desk.database import data_folder, database_in
        from thalweg.desk.library import Library
        from thalweg.desk.problems import Problems
    except ImportError as error:
        raise ValueError(f"the desk needs further packages: pip install 'thalweg[desk]' ({error})") from None
    folder = data or data_folder()
    try:
        database = database_in(folder)
        yield Library(database), Problems(database)
    except ConnectionError as error:
        raise ValueError(f"{error}; what came before is kept, and the same command goes on") from None
    except sqlite3.Error as error:
        raise ValueError(
            f"{folder} cannot be written ({error}); what was confirmed before is kept, "
            "and the same command goes on once there is room"
        ) from None
