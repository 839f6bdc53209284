"""A paper as the desk shows it, whether it is in the built-in catalog or was imported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from thalweg.desk.evidence_rows import Measured, measured
from thalweg.papers.entry import Entry
from thalweg.papers.status import Status, code_of, status

__all__ = ["Paper"]


@dataclass(frozen=True)
class Paper:
    """What a list and a page say of a paper.

    ``key`` is its address on the desk. ``date`` is a day, or a month where only that is known (the built-in
    catalog). ``automatic`` says that topics, room and addresses were guessed from the text. ``entry`` is its
    place in the built-in catalog; an imported paper has none, and then nothing was built or measured.
    ``added`` is when it was imported, in seconds of 1970.
    """

    key: str
    title: str
    summary: str = ""
    claim: str = ""
    arxiv: str = ""
    date: str = ""
    authors: tuple[str, ...] = ()
    organisation: str = ""
    room: str = ""
    topics: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    link: str = ""
    repository: str = ""
    automatic: bool = False
    added: float = 0.0
    entry: Entry | None = None

    @property
    def id(self) -> str:
        """Its arXiv id, or its key where it has none."""
        return self.arxiv or self.key

    @cached_property
    def status(self) -> Status | None:
        return status(self.entry) if self.entry else None

    @cached_property
    def measured(self) -> Measured | None:
        return measured(self.entry) if self.entry else None

    @property
    def state(self) -> str:
        """How far it has come here: working, partial, planned; ``imported`` when it is not in the catalog."""
        return self.status.state if self.status else "imported"

    @property
    def verdict(self) -> str:
        """What to say in a list: the verdict, or how far it has come."""
        return self.measured.verdict if self.measured else self.state

    @property
    def code(self) -> str:
        """What to paste; empty where nothing exists yet."""
        return code_of(self.entry, self.status) if self.entry and self.status else ""


def of_catalog(entry: Entry) -> Paper:
    """A paper of the built-in catalog."""
    return Paper(
        key=entry.key,
        title=entry.title,
        summary=entry.summary,
        claim=entry.claim,
        arxiv=entry.arxiv,
        date=entry.date,
        authors=entry.authors,
        organisation=entry.organisation,
        room=entry.room,
        topics=entry.topics,
        addresses=entry.addresses,
        link=entry.link,
        repository=entry.repository,
        entry=entry,
    )
