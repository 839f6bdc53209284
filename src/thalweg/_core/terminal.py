"""What every command shares: errors in one line, wide output where nobody looks, tables of plain text."""

from __future__ import annotations

import io
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
    """As wide as the terminal, or wide enough for one line a row; to stderr it stands beside other output."""
    kind = _Aside if stderr else Console
    return kind(stderr=stderr, width=None if is_terminal(stderr) else WIDE, highlight=False)


def is_terminal(stderr: bool = False) -> bool:
    """Whether somebody looks; of a stream that was closed before the start nobody does."""
    stream = sys.stderr if stderr else sys.stdout
    return stream is not None and stream.isatty()


def print_any_letter() -> None:
    """From here on a letter that the terminal does not know is a question mark, not an error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def print_whole(screen: Console, table: Table) -> None:
    """On a terminal that is too narrow its lines are broken: a number cut short would be another one."""
    least = screen.measure(table, options=screen.options.update_width(10 * WIDE)).minimum
    width, screen.width = screen.width, max(screen.width, least)
    screen.print(table)
    screen.width = width


class _Aside(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the process and send all that a script prints from here on to nowhere.
        self.quiet = True


def print_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table whose cells are text, not markup; keys are never broken over lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "key")
    for row in rows:
        table.add_row(*map(Text, row))
    print_whole(console(), table)


def progress_bar(on: Console, **options: Any) -> Progress:
    """Description, bar, count and time; ``options`` are those of ``rich.progress.Progress``."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=on, **options)
