"""What arXiv announces each day, from its Atom feeds: less than the API has, but there when it refuses."""

from __future__ import annotations

import re
from dataclasses import replace

import arxiv
import requests
from lxml import etree

from thalweg.desk.imported import Imported, categories_among, checked

__all__ = ["FEED", "announced"]

FEED = "https://rss.arxiv.org/atom"
NAMES = {
    "atom": "http://www.w3.org/2005/Atom",
    "arxiv": "http://arxiv.org/schemas/atom",
    "dc": "http://purl.org/dc/elements/1.1/",
}
NEW = ("new", "cross")


def announced(client: arxiv.Client, category: str, topic: str, *, feed: str = FEED) -> list[Imported]:
    """New papers of a category of the last announcement that hold every word of a topic.

    Raises:
        ConnectionError: the feed did not come, or is none.
    """
    try:
        answer = client._session.get(f"{feed}/{category}")
        answer.raise_for_status()
        root = etree.fromstring(answer.content, etree.XMLParser(resolve_entities=False, no_network=True))
    except (requests.RequestException, etree.XMLSyntaxError) as error:
        raise ConnectionError(f"arXiv did not answer, nor did its feed of {category}: {error}") from None
    words = re.findall(r"[\w-]+", topic.lower())
    found = []
    for entry in root.iterfind("atom:entry", NAMES):
        if _text(entry, "arxiv:announce_type") not in NEW:
            continue
        try:
            one = _paper(entry)
        except ValueError:
            continue
        text = f"{one.title} {one.abstract}".lower()
        if all(word in text for word in words):
            found.append(one)
    return found


def _paper(entry: etree._Element) -> Imported:
    found = checked(
        {
            "id": _text(entry, "atom:id").removeprefix("oai:arXiv.org:"),
            "title": _text(entry, "atom:title"),
            "abstract": _text(entry, "atom:summary").partition("Abstract:")[2],
            "authors": re.split(r",\s*", _text(entry, "dc:creator")),
            "published": _text(entry, "atom:published")[:10],
            "categories": categories_among(
                one.get("term", "") for one in entry.iterfind("atom:category", NAMES)
            ),
        },
        source="arxiv feed",
    )
    # That is the day of the announcement; what the API says later shall replace it.
    return replace(found, updated="")


def _text(entry: etree._Element, path: str) -> str:
    return entry.findtext(path, default="", namespaces=NAMES)
