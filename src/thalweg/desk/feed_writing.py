"""Papers as an Atom or RSS document (RFC 4287, RSS 2.0): what each claims, and what was measured of it."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlencode

from feedgen.entry import FeedEntry
from feedgen.feed import FeedGenerator

from thalweg.desk.novelty import STARTED
from thalweg.desk.paper import Paper
from thalweg.desk.views import TEMPLATES
from thalweg.desk.wording import paper_text

__all__ = ["Feed", "Item"]

# Names the ids of what has no address of its own; never to be changed.
SPACE = uuid.UUID("8d1c2f38-57b4-5b1e-9a4e-0c6f1c1f6a55")
UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Item:
    """A paper with its moments, in seconds of 1970: when it came out (0: unknown), when last news came."""

    paper: Paper
    published: float
    updated: float


@dataclass(frozen=True)
class Feed:
    """``chosen`` are the parts of its address that say what it is about; ``public`` is the desk's address."""

    kind: str
    chosen: dict[str, str]
    public: str

    @property
    def title(self) -> str:
        return f"thalweg: {' · '.join(self.chosen.values()) or 'all papers'}"

    def written(
        self, items: Iterable[Item], broken: Callable[[Item, Exception], None]
    ) -> tuple[bytes, float]:
        """The document, and when it last changed.

        Args:
            broken: told of an item that cannot be written and is left out.
        """
        query = f"?{urlencode(self.chosen)}" if self.chosen else ""
        made = FeedGenerator()
        made.id(f"urn:uuid:{uuid.uuid5(SPACE, f'feed{query}')}")
        made.title(_plain(self.title))
        made.description("Papers on how training works, with what was measured of their claims.")
        made.author(name="thalweg")
        made.language("en")
        page = "papers" if not self.chosen else "findings" if "finding" in self.chosen else f"search{query}"
        made.link(href=f"{self.public}/feeds/papers.{self.kind}{query}", rel="self")
        made.link(href=f"{self.public}/{page}", rel="alternate")
        latest = 0.0
        for item in items:
            try:
                made.add_entry(_entry(item, self.public), order="append")
            except Exception as error:  # whatever is wrong with a row, the other papers are fine
                broken(item, error)
                continue
            latest = max(latest, item.updated)
        latest = latest or STARTED  # of an empty one
        made.updated(_moment(latest))
        made.lastBuildDate(_moment(latest))
        return (made.atom_str() if self.kind == "atom" else made.rss_str()), latest


def _entry(item: Item, public: str) -> FeedEntry:
    paper, text = item.paper, paper_text(item.paper, public)
    entry = FeedEntry()
    # What an import adds to a paper of the catalog does not give it another id.
    link = paper.entry.link if paper.entry else paper.link
    entry.id(link or f"urn:uuid:{uuid.uuid5(SPACE, paper.key)}")
    entry.title(_plain(text.title))
    entry.link(href=text.address)
    if item.published:
        entry.published(_moment(item.published))
    entry.updated(_moment(item.updated))
    for name in paper.authors[:20]:
        entry.author(name=_plain(name))
    summary = text.summary or text.claim or text.measured
    entry.summary(_plain(summary))
    entry.content(_plain(TEMPLATES.get_template("feed_entry.html").render(paper=text)), type="html")
    for topic in paper.topics:
        entry.category(term=_plain(topic))
    entry.atom_entry(), entry.rss_entry()  # what cannot be written fails here, alone
    return entry


def _plain(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return UNFIT.sub("", text)


def _moment(seconds: float) -> datetime.datetime:
    return EPOCH + datetime.timedelta(seconds=int(seconds))
