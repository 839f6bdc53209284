"""What every command shares: errors in one line, wide output where nobody looks, tables of plain text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 240  # columns of a file or a pipe: one line a row


@contextmanager
def user_errors(command: str = "thalweg") -> Iterator[None]:
    """What the user can put right is one line on stderr and exit code 2, never a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"{command}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def console(stderr: bool = False) -> Console:
    """As wide as the terminal, or wide enough for one line a row."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDE, highlight=False)


def print_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table whose cells are text, not markup; keys are never broken over lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "key")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def progress_bar(on: Console, **options: Any) -> Progress:
    """Description, bar, count and time; ``options`` are those of ``rich.progress.Progress``."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=on, **options)
