"""How the desk asks arXiv: seldom, patiently, and believing no answer that is not whole.

``arxiv.Client`` keeps the pause between requests and tries again after a failure. An adapter of its session
adds what it does not see to: a time limit, longer and longer waits, ``Retry-After``, pages that break off in
the middle, pages that are empty although there is more, and errors in the shape of a paper.
"""

from __future__ import annotations

import datetime
import re
import time
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import arxiv
import requests
from requests.adapters import HTTPAdapter

__all__ = ["API", "DELAY", "polite_client"]

API = "https://export.arxiv.org/api/query"
DELAY = 3.0  # seconds between requests that arXiv's terms ask for
TRIES = 6
PAGE = 100  # papers a request
TIMEOUT = (20.0, 120.0)  # seconds to connect, and between bytes
LONGEST_WAIT = 900.0  # seconds; whoever is asked to stay away for longer gives up
MAY_PASS = (403, 408, 429)  # refusals that are about the moment and not about the query
# What the API says in the shape of a paper, with a status of success or without.
ERROR = re.compile(
    rb"<id>[^<]*/api/errors[^<]*</id>.*?(?:<summary[^>]*>\s*([^<]*?)\s*</summary>|</entry>)", re.DOTALL
)
TOTAL = re.compile(rb"<opensearch:totalResults[^>]*>\s*(\d+)\s*<")


class Whole(HTTPAdapter):
    """Passes on an answer that is complete; before the next request it waits as it was asked to.

    ``total`` is how many papers the last query has, as the API said.
    """

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay
        self.failures = 0
        self.not_before = 0.0  # time.monotonic() of the next request
        self.total = 0

    def send(self, request: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        time.sleep(max(self.not_before - time.monotonic(), 0))
        options["timeout"] = TIMEOUT
        try:
            answer = super().send(request, **options)
            content = answer.content
        except requests.RequestException as error:
            self._wait(0)
            # The one kind that arxiv.Client tries again.
            raise requests.ConnectionError(f"no whole answer from arXiv: {error}") from None
        status = answer.status_code
        if status >= 400:
            asked = _seconds(answer.headers.get("Retry-After", ""))
            if asked > LONGEST_WAIT:
                raise requests.exceptions.RetryError(
                    f"arXiv asks to be left alone for {asked:.0f} s ({status})"
                )
            if status < 500 and status not in MAY_PASS:
                raise requests.exceptions.RetryError(f"arXiv refuses the query ({status})")
            self._wait(asked)
        elif status == 200:
            if wrong := _fault(request.url, content):
                self._wait(0)
                raise requests.ConnectionError(wrong)
            self.failures = 0
            self.total = int(found[1]) if (found := TOTAL.search(content)) else 0
        return answer

    def _wait(self, asked: float) -> None:
        """Twice as long after each failure, and never shorter than the server asks."""
        self.failures += 1
        self.not_before = time.monotonic() + max(min(self.delay * 2**self.failures, LONGEST_WAIT), asked)


def polite_client(
    *, api: str = API, delay: float = DELAY, tries: int = TRIES, page: int = PAGE
) -> arxiv.Client:
    """A client that asks once in ``delay`` seconds and at most ``tries`` times for the same page.

    Args:
        api: the address that answers queries.
        page: papers a request.
    """
    adapter = Whole(delay)
    client = arxiv.Client(page_size=page, delay_seconds=delay, num_retries=tries - 1)
    client.query_url_format = api + "?{}"
    client._session.mount("https://", adapter)  # it has no other way to be given an adapter
    client._session.mount("http://", adapter)
    return client


def _fault(address: str, content: bytes) -> str:
    """What is wrong with a page that claims to be right."""
    if not content.rstrip().endswith(b"</feed>"):
        return "a page broke off before its end"
    if error := ERROR.search(content):
        return f"arXiv answers with an error: {unescape((error[1] or b'').decode(errors='replace'))[:200]}"
    asked = parse_qs(urlsplit(address).query)
    if "search_query" not in asked or b"<entry" in content:
        return ""
    total = int(found[1]) if (found := TOTAL.search(content)) else -1
    start = int(asked.get("start", ["0"])[0])
    if total < 0 or start < total or (start and not total):
        return f"the page from {start} on was empty although there are papers"
    return ""


def _seconds(asked: str) -> float:
    """``Retry-After``: seconds, or a date."""
    try:
        return float(asked)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(asked) - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
