"""What feeds and mail say of a paper, in plain sentences."""

from __future__ import annotations

import dataclasses

from thalweg.desk.paper import Paper

__all__ = ["PaperText", "paper_text"]

LONGEST = 600  # characters of a summary
AUTHORS = 3


@dataclasses.dataclass(frozen=True)
class PaperText:
    """``facts`` is one line: when, where it belongs, by whom; ``helps`` and ``measured`` are a sentence each.

    Where room, topics and findings were guessed from the text, both lines say that they are automatic.
    """

    title: str
    address: str
    facts: str
    summary: str
    claim: str
    helps: str
    measured: str


def paper_text(paper: Paper, public: str) -> PaperText:
    """Texts of a paper, whose page is on the desk at the address ``public``."""
    authors = ", ".join(paper.authors[:AUTHORS])
    if further := len(paper.authors) - AUTHORS:
        authors += f" and {further} more" if further > 0 else ""
    guessed = paper.automatic and bool(paper.room or paper.topics)
    labels = (paper.room, ", ".join(paper.topics), "automatic" if guessed else "")
    facts = (paper.date, authors, paper.organisation, *labels)
    return PaperText(
        title=" ".join(paper.title.split()),
        address=f"{public}/papers/{paper.key}",
        facts=" · ".join(fact for fact in facts if fact),
        summary=_cut(paper.summary),
        claim=_cut(paper.claim),
        helps=_helps(paper),
        measured=_measured(paper),
    )


def _helps(paper: Paper) -> str:
    if not paper.addresses:
        return ""
    return f"Helps against {', '.join(paper.addresses)}{' (automatic)' if paper.automatic else ''}."


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
