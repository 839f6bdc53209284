"""Topics by name, whatever its case; one that the desk does not have is refused with the nearest."""

from __future__ import annotations

import difflib

from thalweg.desk.shelf import Shelf

__all__ = ["UnknownTopic", "known_topic"]


class UnknownTopic(ValueError):
    """``near`` are the topics that are written most like it."""

    def __init__(self, topic: str, near: tuple[str, ...]) -> None:
        meant = f" (did you mean {', '.join(near)}?)" if near else ""
        super().__init__(f"topic must be one of this desk's, got {topic[:80]!r}{meant}; all are on /topics")
        self.near = near


def known_topic(shelf: Shelf, topic: str) -> str:
    """A topic as the desk spells it; empty for an empty one.

    Raises:
        UnknownTopic: the desk has none of that name, in whatever case.
    """
    topic = " ".join(topic.split())
    names = [name for name, _ in shelf.topics]
    if not topic or topic in names:
        return topic
    folded = {name.casefold(): name for name in reversed(names)}  # of two spellings the one with more papers
    if topic.casefold() not in folded:
        near = difflib.get_close_matches(topic.casefold()[:80], folded, cutoff=0.5)
        raise UnknownTopic(topic, tuple(folded[one] for one in near))
    return folded[topic.casefold()]
