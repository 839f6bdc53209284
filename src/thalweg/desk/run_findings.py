"""The findings of a run in pages of a bounded weight: the latest, or those from a given one on."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request
from jinja2.utils import htmlsafe_json_dumps
from starlette.responses import Response

from thalweg.desk.run_source import run_of, source_of
from thalweg.desk.views import page

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from thalweg.watch import Finding
    from thalweg.watch.store_findings import StoredFindings

router = APIRouter()
MOST = 25  # findings on a page
WEIGHT = 50_000  # bytes of HTML that they take, unless one alone takes more
MESSAGE = 5000  # characters of a message that are shown, as in _finding.html
MARKED = 400  # others that have a mark on the curves: those nearest by number
MARKS_WEIGHT = 10_000  # bytes that these take
NAME = 40  # characters of the name at a mark


@dataclass(frozen=True)
class FindingsPage:
    """A page of the findings of a run, which are counted from 1.

    Attributes:
        listed: number, finding, and whether it is the first of its name in the run.
        others: of those that only have marks: name, severity, and number and step of each.
        earlier: from which one on the page before goes; None on the first page.
        later: the same of the page after, 0 where that is the latest page; None on the latest.
        critical: how many of those before the page are.
        total: how many the run has.
    """

    listed: list[tuple[int, Finding, bool]]
    others: list[tuple[str, str, list[tuple[int, int]]]]
    earlier: int | None
    later: int | None
    critical: int
    total: int


def page_of(findings: StoredFindings, start: int | None = None) -> FindingsPage:
    """The findings from number ``start`` on, or the latest where it is None or there are not so many.

    Reads no more of them than the page, its neighbours and the marks need.
    """
    total = len(findings)
    latest = total - _fit(findings.between(total - MOST, total)[::-1])
    first = latest if start is None or start > total else start - 1
    here = findings.between(first, first + MOST)
    here = here[: _fit(here)]
    last = first + len(here)
    known = findings.known_before({one.name for one in here}, first)
    listed = []
    for number, one in enumerate(here, first + 1):
        listed.append((number, one, one.name not in known))
        known.add(one.name)
    before = findings.between(first - MOST, first)
    return FindingsPage(
        listed=listed,
        others=_others(findings, first, last, total),
        earlier=first - _fit(before[::-1]) + 1 if first else None,
        later=None if last == total else 0 if last >= latest else last + 1,
        critical=findings.critical(first),
        total=total,
    )


def _others(
    findings: StoredFindings, first: int, last: int, total: int
) -> list[tuple[str, str, list[tuple[int, int]]]]:
    """Those before ``first`` and from ``last`` on, the nearest of them, as many as may have marks."""
    low, high = max(first - MARKED, 0), min(last + MARKED, total)
    marks = dict(enumerate(findings.marks(low, first), low))
    marks |= enumerate(findings.marks(last, high), last)
    near = sorted(marks, key=lambda number: max(first - number, number - last + 1))
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    weight = 0
    for number in near[:MARKED]:
        name, severity, step = marks[number]
        key = str(name)[:NAME], str(severity)
        weight += 20 + (len(htmlsafe_json_dumps(key)) if key not in groups else 0)
        if weight > MARKS_WEIGHT:
            break
        groups.setdefault(key, []).append((number + 1, step))
    return [(*key, marks) for key, marks in groups.items()]


@router.get("/runs/{run:int}/findings/{number:int}", include_in_schema=False)
def one_finding(request: Request, run: int, number: int) -> Response:
    """A finding as the page of its run shows it; they are counted from 1."""
    from thalweg.watch.store_findings import StoredFindings

    source = source_of(request)
    with source.open() as store:
        run_of(store, run, source)
        findings = StoredFindings(store, run, source.damaged)
        if not 1 <= number <= len(findings):
            raise HTTPException(404, f"run {run} has no finding {number}")
        (one,) = findings.between(number - 1, number)
        first = not findings.known_before([one.name], number - 1)
    return page(
        request, "_finding.html", one=one, number=number, first=first, papers=papers_of(request, [one])
    )


def papers_of(request: Request, findings: Iterable[Finding]) -> dict[str, Any]:
    """Papers that findings and their remedies name, as far as the desk knows them."""
    keys = {key for one in findings for key in (*one.papers, *(remedy.paper for remedy in one.remedies))}
    known = request.app.state.catalog.by_id
    return {key: known[key] for key in keys if key in known}


def _fit(findings: Sequence[Finding]) -> int:
    """How many of these, in their order, a page takes; one always."""
    weights = accumulate(map(_weight, findings[:MOST]))
    return max(sum(weight <= WEIGHT for weight in weights), min(1, len(findings)))


def _weight(one: Finding) -> int:
    """How many bytes of HTML a finding takes, rather too many than too few."""
    texts = [one.name, one.name, one.message[:MESSAGE], str(one.rates or ""), *one.evidence, *one.layers[:30]]
    texts += [text for remedy in one.remedies for text in (remedy.title, remedy.code)]
    frames = 450 + 50 * len(one.evidence) + 2 * len(one.layers[:30]) + 300 * len(one.remedies)
    frames += 150 * len(one.papers)
    return frames + sum(len(escape(text).encode()) for text in texts)
