"""``thalweg papers``: search, show and list the catalog in a terminal."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from thalweg._core.blas import one_blas_thread
from thalweg._core.checks import check_choice
from thalweg._core.terminal import console, is_terminal, print_table, user_errors
from thalweg.papers.entry import ROOMS, TIERS, Entry, UnknownPaper, find, load
from thalweg.papers.search import named
from thalweg.papers.search import search as search_catalog
from thalweg.papers.status import STATES, code_of, import_lines, read_evidence
from thalweg.papers.status import status as status_of

app = typer.Typer(help="The catalog of papers.", no_args_is_help=True)


@app.callback()
def papers() -> None:
    """What holds for every command."""
    one_blas_thread()


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="What you want to know, in plain words.")],
    limit: Annotated[int, typer.Option(help="How many papers at most.")] = 10,
) -> None:
    """Find papers of the built-in catalog by word and by meaning; the desk searches imported ones as well."""
    with user_errors("thalweg papers"):
        hits = search_catalog(question, limit)
    if not hits:
        typer.echo(f"no paper matches {question!r}")
        return
    print_table(
        ("key", "title", "room", "why"),
        [(hit.entry.key, hit.entry.title, hit.entry.room, hit.why) for hit in hits],
    )


@app.command()
def show(
    key: Annotated[
        str, typer.Argument(help="The paper's key, as search and list print it; or its arXiv id or title.")
    ],
) -> None:
    """Print what a paper says, how far it has come here, and the code to paste."""
    with user_errors("thalweg papers"):
        entry = _asked_for(key)
    found = status_of(entry)
    evidence = read_evidence(entry.key)
    _say(entry.title, style="bold")
    _say(f"{entry.key} · {entry.room} · {entry.form} · tier {entry.tier} · {', '.join(entry.topics)}")
    who = ", ".join(entry.authors) + (f" ({entry.organisation})" if entry.organisation else "")
    for line in (who.strip(), entry.link, entry.repository):
        if line:
            _say(line)
    _say(f"\nstatus: {found.state}", style="bold")
    for reason in found.reasons:
        _say(f"  {reason}")
    for name, text in (("summary", entry.summary), ("claim", entry.claim)):
        if text:
            _say(f"\n{name}", style="bold")
            _say(text)
    if entry.addresses:
        _say(f"\naddresses: {'; '.join(entry.addresses)}")
    if entry.parts:
        _say("\ncode", style="bold")
        _say(code_of(entry, found))
        for line in import_lines(found.parts_missing):
            _say(f"# {line}  (planned)")
    if found.has_study:
        _say("\nstudy", style="bold")
        _say(f"thalweg study run {entry.key}")
    if evidence:
        _say(f"\nverdict: {evidence['verdict']}", style="bold")
        if evidence.get("effect") is not None:
            _say(f"effect: {evidence['effect']}")


@app.command("list")
def list_papers(
    room: Annotated[str | None, typer.Option(help="Only this room.")] = None,
    status: Annotated[str | None, typer.Option(help="Only this status: planned, partial or working.")] = None,
    tier: Annotated[int | None, typer.Option(help="Only this tier, 1 to 4.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the catalog, or the part of it that fits the filters."""
    with user_errors("thalweg papers"):
        if room is not None:
            check_choice("room", room, ROOMS)
        if status is not None:
            check_choice("status", status, STATES)
        if tier is not None and tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(map(str, TIERS))}; got {tier}")
    entries = load()
    kept = [entry for entry in entries if room in (None, entry.room) and tier in (None, entry.tier)]
    rows = [(entry, status_of(entry).state) for entry in kept]
    rows = [(entry, state) for entry, state in rows if status in (None, state)]
    if as_json:
        typer.echo(
            json.dumps([{**dataclasses.asdict(entry), "status": state} for entry, state in rows], indent=1)
        )
        return
    if rows:
        print_table(
            ("key", "title", "room", "form", "tier", "status"),
            [
                (entry.key, entry.title, entry.room, entry.form, str(entry.tier), state)
                for entry, state in rows
            ],
        )
    typer.echo(
        f"{len(rows)} of {len(entries)} papers" if len(rows) < len(entries) else f"{len(entries)} papers"
    )


def _asked_for(name: str) -> Entry:
    """The paper with this key, arXiv id (or address), repository or exact title."""
    try:
        return find(name)
    except UnknownPaper:
        if len(found := named(name)) != 1:
            raise
        return found[0]


def _say(text: str, style: str | None = None) -> None:
    # Titles may hold brackets, which are not markup; text to paste is never broken over lines off a terminal.
    console().print(text, style=style, markup=False, soft_wrap=not is_terminal())
