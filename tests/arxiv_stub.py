"""A stand-in for arXiv's API, over made-up papers, that fails in the ways the real one does."""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ENTRY = """  <entry>
    <id>http://arxiv.org/abs/{id}v{version}</id>
    <title>{title}</title>
    <updated>{updated}</updated>
    <link href="https://arxiv.org/abs/{id}v{version}" rel="alternate" type="text/html"/>
    <link href="https://arxiv.org/pdf/{id}v{version}" rel="related" type="application/pdf" title="pdf"/>
    <summary>  {abstract}
    </summary>
    <category term="cs.LG" scheme="http://arxiv.org/schemas/atom"/>
    <category term="{category}" scheme="http://arxiv.org/schemas/atom"/>
    <published>{published}</published>
    <arxiv:comment>{comment}</arxiv:comment>
    <arxiv:primary_category term="cs.LG"/>
{authors}
  </entry>
"""
FEED = """<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom"
 xmlns="http://www.w3.org/2005/Atom">
  <id>https://arxiv.org/api/made-up</id>
  <title>arXiv Query: {query}</title>
  <updated>2026-11-30T00:00:00Z</updated>
  <opensearch:itemsPerPage>{size}</opensearch:itemsPerPage>
  <opensearch:totalResults>{total}</opensearch:totalResults>
  <opensearch:startIndex>{start}</opensearch:startIndex>
{entries}</feed>
"""
ERROR = """  <entry>
    <id>https://arxiv.org/api/errors#incorrect_id_format_for_1234.12345</id>
    <title>Error</title>
    <summary>incorrect id format for 1234.12345 &amp; others</summary>
    <updated>2026-11-30T00:00:00Z</updated>
    <link href="https://arxiv.org/api/errors#incorrect_id_format" rel="alternate" type="text/html"/>
    <author><name>arXiv api core</name></author>
  </entry>
"""
AUTHOR = "    <author>\n      <name>{}</name>\n{}    </author>"
ANNOUNCED = """<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:arxiv="http://arxiv.org/schemas/atom" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns="http://www.w3.org/2005/Atom"><id>made-up</id><title>cs.LG updates</title>
{}</feed>
"""
ANNOUNCEMENT = """  <entry><id>oai:arXiv.org:{id}v1</id><title>{title}</title>
    <summary>arXiv:{id}v1 Announce Type: {kind}
Abstract: {abstract}</summary>
    <category term="cs.LG"/><category term="{category}"/>
    <published>2026-11-30T00:00:00-05:00</published>
    <arxiv:announce_type>{kind}</arxiv:announce_type><dc:creator>Ada Arden, Ben Brook</dc:creator></entry>
"""


@dataclass
class MadeUp:
    """A paper that nobody wrote."""

    id: str
    title: str
    abstract: str
    published: str
    version: int = 1
    updated: str = ""
    category: str = "stat.ML"
    comment: str = "12 pages"
    author: str = "Ada Arden"
    institute: str = "University of Nowhere"


def made_up(count: int, topic: str = "gradient spikes", until: str = "2026-11-20") -> list[MadeUp]:
    """``count`` papers about a topic, one every six hours up to a day, the latest first."""
    last = datetime.datetime.fromisoformat(until).replace(hour=18)
    moments = [last - datetime.timedelta(hours=6 * number) for number in range(count)]
    return [
        MadeUp(
            id=f"{moment:%y%m.1%d%H}",
            title=f"On {topic} of the {count - number}th kind & their <cause>",
            abstract=f"We look at {topic} in networks that nobody trained, and find {number} of them.",
            published=f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        )
        for number, moment in enumerate(moments)
    ]


@dataclass
class Stub:
    """``faults`` are used up one a request: a status, ``(status, Retry-After)``, or a word below."""

    papers: list[MadeUp]
    faults: list[object] = field(default_factory=list)
    always: object = None
    asked: list[dict[str, str]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    announced: list[tuple[MadeUp, str]] = field(default_factory=list)
    answers: int = 10**9  # further requests wait until it is raised
    address: str = ""

    @property
    def api(self) -> str:
        return f"{self.address}/api/query"

    def page(self, asked: dict[str, str], empty: bool = False) -> bytes:
        query = asked["search_query"]
        low, high = re.search(r"submittedDate:\[(\d{12}) TO (\d{12})\]", query).groups()
        words = [word.strip('"').lower() for word in re.findall(r'all:("[^"]*"|\S+)', query)]
        held = [
            one
            for one in sorted(self.papers, key=lambda one: one.published, reverse=True)
            if low <= re.sub(r"\D", "", one.published)[:12] <= high
            and all(word in f"{one.title} {one.abstract}".lower() for word in words)
        ]
        start, size = int(asked["start"]), int(asked["max_results"])
        entries = "" if empty else "".join(map(_entry, held[start : start + size]))
        written = FEED.format(query=escape(query), size=size, total=len(held), start=start, entries=entries)
        return written.encode()


def _entry(one: MadeUp) -> str:
    institute = f"      <arxiv:affiliation>{escape(one.institute)}</arxiv:affiliation>\n"
    authors = "\n".join([AUTHOR.format(escape(one.author), institute), AUTHOR.format("Ben Brook", "")])
    values = {name: escape(str(value)) for name, value in one.__dict__.items()}
    return ENTRY.format(**(values | {"updated": one.updated or one.published, "authors": authors}))


@contextlib.contextmanager
def arxiv_stub(papers: list[MadeUp], *faults: object, **more: object) -> Iterator[Stub]:
    """The stand-in, listening on a free port of this machine."""
    stub = Stub(papers, list(faults), **more)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stub.at.append(time.monotonic())
            parts = urlsplit(self.path)
            if parts.path.startswith("/atom/"):
                entries = (
                    ANNOUNCEMENT.format(
                        id=one.id,
                        title=escape(one.title),
                        abstract=one.abstract,
                        category=one.category,
                        kind=kind,
                    )
                    for one, kind in stub.announced
                )
                return self.answer(ANNOUNCED.format("".join(entries)).encode())
            asked = {name: value[0] for name, value in parse_qs(parts.query).items()}
            stub.asked.append(asked)
            while len(stub.asked) > stub.answers:
                time.sleep(0.01)
            fault = stub.faults.pop(0) if stub.faults else stub.always
            body = stub.page(asked, empty=fault == "empty")
            if isinstance(fault, tuple):
                return self.answer(b"Rate exceeded.", fault[0], {"Retry-After": str(fault[1])})
            if isinstance(fault, int):
                return self.answer(b"<html>no</html>", fault)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return self.connection.close()
            if fault == "cut":  # well-formed as far as it goes, and the length is right
                return self.answer(body[: len(body) * 2 // 3])
            if fault == "short":  # less than the length promises
                return self.answer(body, cut=len(body) // 2)
            if fault == "error":  # with a status of success
                return self.answer(FEED.format(query="", size=1, total=1, start=0, entries=ERROR).encode())
            if fault == "slow":
                time.sleep(1.0)
            return self.answer(body)

        def answer(self, body: bytes, status: int = 200, headers: dict[str, str] = {}, cut: int = 0) -> None:  # noqa: B006
            with contextlib.suppress(OSError):  # who asked may have gone
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: cut or None])

        def log_message(self, *about: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *about: None  # resets are meant
    stub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.answers = 10**9
        server.shutdown()
        server.server_close()
        thread.join()
