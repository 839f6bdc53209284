"""``thalweg papers repair``: what damage left of the desk's data put right, as far as it can be."""

from __future__ import annotations

from thalweg._core.terminal import console, user_errors
from thalweg.desk.ingest_cli import COMMAND, Data, opened_desk

# What comes by itself again, or stands for nothing while it cannot be read.
GIVEN_UP = ("problems", "first_seen", "fetches", "votes", "health")


def repair(data: Data = None) -> None:
    """Put right what is damaged in the desk's data, first of all imported papers and their numbers."""
    screen = console()
    with user_errors(COMMAND), opened_desk(data) as (library, problems):
        from thalweg.desk.stored_values import damaged_values, delete_damaged

        found = library.repair()
        gone = {table: count for table in GIVEN_UP if (count := delete_damaged(library.database, table))}
        problems.solved("library")
        left = damaged_values(library.database)
    screen.print(f"{len(found)} damaged papers; papers by day and by label are counted anew")
    if found:
        screen.print(f"import again: {', '.join(found)}", markup=False, soft_wrap=True)
    for table, count in gone.items():
        screen.print(f"{count} damaged rows of {table} are taken out")
    if left:
        names = ", ".join(f"{name} ({count})" for name, count in left.items())
        screen.print(f"left as they are, for a backup to put right: {names}", markup=False, soft_wrap=True)
