"""What a subscriber wants to read of: topics, rooms, findings, questions; everything if nothing is named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from thalweg._core.checks import check_choice
from thalweg.desk.known_topics import UnknownTopic, known_topic
from thalweg.desk.paper import Paper
from thalweg.desk.shelf import Shelf
from thalweg.papers.entry import ROOMS

__all__ = ["Wants"]

MOST = 20  # things that one subscriber names
LONGEST = 200  # characters of a question


@dataclass(frozen=True)
class Wants:
    """A paper is wanted if it fits any of them."""

    topics: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        return not (self.topics or self.rooms or self.findings or self.questions)

    @property
    def named(self) -> tuple[str, ...]:
        """What it names, questions in quotation marks."""
        return (*self.topics, *self.rooms, *self.findings, *(f"“{one}”" for one in self.questions))

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """Kind and name of each topic, room and finding."""
        kinds = (("topic", self.topics), ("room", self.rooms), ("finding", self.findings))
        return tuple((kind, name) for kind, names in kinds for name in names)

    def tagged(self, paper: Paper) -> bool:
        """Whether a topic, the room or a finding of the paper is wanted; questions need a search."""
        return (
            self.everything
            or paper.room in self.rooms
            or not set(self.topics).isdisjoint(paper.topics)
            or not set(self.findings).isdisjoint(paper.addresses)
        )

    def __or__(self, other: Wants) -> Wants:
        """Both; everything if either is everything."""
        if self.everything or other.everything:
            return Wants()
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Wants(*(tuple(dict.fromkeys((*mine, *theirs))) for mine, theirs in pairs))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Wants:
        return cls(**{name: tuple(values) for name, values in json.loads(text).items()})


def checked_wants(
    shelf: Shelf,
    topics: Iterable[str] = (),
    rooms: Iterable[str] = (),
    findings: Iterable[str] = (),
    questions: Iterable[str] = (),
) -> Wants:
    """What was asked for, if the desk has such topics (in whatever case), rooms and findings.

    Empty texts count for nothing.

    Raises:
        ValueError: it has not, there are too many, or a question is too long.
    """
    wants = Wants(*(_cleaned(values) for values in (topics, rooms, findings, questions)))
    if len(wants.named) > MOST:
        raise ValueError(
            f"at most {MOST} topics, rooms, findings and questions can be chosen, got {len(wants.named)}"
        )
    wants = replace(wants, topics=tuple(dict.fromkeys(known_topic(shelf, one) for one in wants.topics)))
    for room in wants.rooms:
        check_choice("room", room, ROOMS)
    for name in wants.findings:
        check_choice("finding", name, shelf.findings)
    for question in wants.questions:
        if len(question) > LONGEST or not question.isprintable():
            raise ValueError(
                f"a question must be plain text of at most {LONGEST} characters, got {len(question)}"
            )
    return wants


def showable_wants(
    shelf: Shelf,
    topics: Iterable[str] = (),
    rooms: Iterable[str] = (),
    findings: Iterable[str] = (),
    questions: Iterable[str] = (),
) -> tuple[Wants, str]:
    """What of a refused choice a form can show again, and the text that is no topic."""
    known, other = [], ""
    for topic in _cleaned(topics):
        try:
            known.append(known_topic(shelf, topic))
        except UnknownTopic:
            other = other or topic
    return Wants(tuple(known), *map(_cleaned, (rooms, findings, questions))), other


def _cleaned(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for value in values if (text := " ".join(value.split()))))
