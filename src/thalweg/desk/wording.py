"""What feeds and mail say of a paper, in plain sentences."""

from __future__ import annotations

import dataclasses

from thalweg.desk.paper import Paper

__all__ = ["PaperText", "paper_text"]

LONGEST = 600  # characters of a summary
AUTHORS = 3


@dataclasses.dataclass(frozen=True)
class PaperText:
    """``facts`` is one line: when, where it belongs, by whom; ``measured`` is one sentence."""

    title: str
    address: str
    facts: str
    summary: str
    claim: str
    measured: str


def paper_text(paper: Paper, public: str) -> PaperText:
    """Texts of a paper, whose page is on the desk at the address ``public``."""
    authors = ", ".join(paper.authors[:AUTHORS])
    if further := len(paper.authors) - AUTHORS:
        authors += f" and {further} more" if further > 0 else ""
    facts = (paper.date, authors, paper.organisation, paper.room, ", ".join(paper.topics))
    return PaperText(
        title=" ".join(paper.title.split()),
        address=f"{public}/papers/{paper.key}",
        facts=" · ".join(fact for fact in facts if fact),
        summary=_cut(paper.summary),
        claim=_cut(paper.claim),
        measured=_measured(paper),
    )


def _measured(paper: Paper) -> str:
    found = paper.measured
    if found is None:
        return "Not measured here yet."
    said = f"Measured here: {found.verdict}"
    if row := found.headline:
        said += f"; {row.subject}: {row.size} ({row.spread}; {row.formula})"
    return f"{said}. {found.seeds} seeds, {found.minutes:.3g} minutes, {found.date}."


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} …"
