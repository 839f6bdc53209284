"""Findings by name with the papers that address them, and all that was measured, as JSON."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from thalweg._core.checks import check_choice
from thalweg.desk.api_shapes import MeasuredShape, Trouble
from thalweg.desk.known_topics import known_topic
from thalweg.desk.paper import Paper
from thalweg.desk.shelf import Shelf
from thalweg.desk.surviving import SurvivingRoute, shelf_of
from thalweg.desk.troubles import severities, troubles

router = APIRouter(prefix="/api", route_class=SurvivingRoute)


def check_names(shelf: Shelf, *, topic: str = "", finding: str = "") -> str:
    """The topic as the desk spells it; names that nothing has would otherwise be a list without papers.

    Raises:
        ValueError: naming what is allowed, or of many topics the nearest.
    """
    if finding:
        check_choice("finding", finding, {**troubles(), **shelf.findings})
    return known_topic(shelf, topic)


@router.get("/findings", tags=["findings"], response_model=list[Trouble])
def findings(request: Request) -> list[dict[str, Any]]:
    """Every finding that a run can have: what it means and which papers address it, the measured first."""
    shelf = shelf_of(request)
    means, grave, helping, imported = troubles(), severities(), shelf.findings, shelf.addressing(0)
    return [
        {
            "name": name,
            "meaning": means.get(name, ""),
            "severity": list(grave.get(name, ())),
            "papers": [
                _helping(one) for one in sorted(helping.get(name, ()), key=lambda one: one.measured is None)
            ],
            "imported": imported[name][0] if name in imported else 0,
        }
        for name in sorted({*means, *helping})
    ]


def _helping(one: Paper) -> dict[str, Any]:
    return {
        "key": one.key,
        "id": one.id,
        "title": one.title,
        "status": one.state,
        "verdict": one.measured.verdict if one.measured else None,
        "effect": one.measured.effect if one.measured else None,
    }


@router.get("/evidence", tags=["evidence"], response_model=list[MeasuredShape])
def evidence(request: Request) -> list[dict[str, Any]]:
    """What was measured of every paper's claim, the latest first; ``/api/papers/ID/evidence`` has it all."""
    found = [_measured(one) for one in shelf_of(request).papers if one.measured]
    return sorted(found, key=lambda one: one["date"], reverse=True)


def _measured(paper: Paper) -> dict[str, Any]:
    one = paper.measured
    assert one is not None
    first = one.headline
    return {
        "key": paper.key,
        "id": paper.id,
        "title": paper.title,
        "verdict": one.verdict,
        "setting": first and first.setting,
        "metric": first and first.metric,
        "effect": first and first.effect_size,
        "spread": first and [first.low, first.high],
        "formula": first and first.formula,
        "seeds": one.seeds,
        "minutes": one.minutes,
        "date": one.date,
    }
