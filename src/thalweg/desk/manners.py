"""How the desk asks arXiv: seldom, patiently, and believing no answer that is not whole.

``arxiv.Client`` keeps the pause between requests and tries again after a failure. An adapter of its session
adds what it does not see to: a time limit, longer and longer waits, ``Retry-After``, pages that break off in
the middle, pages that are empty although there is more, and errors in the shape of a paper.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import arxiv
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NameResolutionError, NewConnectionError

__all__ = ["API", "DELAY", "polite_client"]

API = "https://export.arxiv.org/api/query"
DELAY = 3.0  # seconds between requests that arXiv's terms ask for
TRIES = 6
PAGE = 100  # papers a request
TIMEOUT = (20.0, 120.0)  # seconds to connect, and between bytes
UNREACHED = 2  # tries where nothing listens, or there is no network, and nothing ever came
LONGEST_WAIT = 900.0  # seconds; whoever is asked to stay away for longer gives up
MAY_PASS = (403, 408, 429)  # refusals that are about the moment and not about the query
# What the API says in the shape of a paper, with a status of success or without.
ERROR = re.compile(
    rb"<id>[^<]*/api/errors[^<]*</id>.*?(?:<summary[^>]*>\s*([^<]*?)\s*</summary>|</entry>)", re.DOTALL
)
TOTAL = re.compile(rb"<opensearch:totalResults[^>]*>\s*(\d+)\s*<")


class Whole(HTTPAdapter):
    """Passes on an answer that is complete; before the next request it waits as it was asked to.

    ``total`` is how many papers the last query has, as the API said; ``reached`` whether anything ever
    answered, and ``unreachable`` whether it was given up because nothing did.
    """

    def __init__(self, delay: float, tries: int = TRIES, told: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.delay, self.tries, self.told = delay, tries, told
        self.reached = self.unreachable = False
        self.failures = 0
        self.left = ("", 0)  # an address, and how often it may be asked for again
        self.not_before = 0.0  # time.monotonic() of the next request
        self.total = 0

    def send(self, request: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        time.sleep(max(self.not_before - time.monotonic(), 0))
        options["timeout"] = TIMEOUT
        address, left = self.left
        self.left = request.url, left - 1 if request.url == address else self.tries - 1
        try:
            answer = super().send(request, **options)
            content = answer.content
        except requests.RequestException as error:
            why, closed = _reason(error)
            if closed and not self.reached and self.failures + 1 >= UNREACHED:
                self.unreachable = True
                raise requests.exceptions.RetryError(why) from None
            self._wait(0, why)
            # The one kind that arxiv.Client tries again.
            raise requests.ConnectionError(why) from None
        self.reached, self.unreachable = True, False
        status = answer.status_code
        if status >= 400:
            asked = _seconds(answer.headers.get("Retry-After", ""))
            if asked > LONGEST_WAIT:
                raise requests.exceptions.RetryError(f"it asks to be left alone for {asked:.0f} s ({status})")
            if status < 500 and status not in MAY_PASS:
                raise requests.exceptions.RetryError(f"it refuses the query ({status})")
            self._wait(asked, f"it refuses for now ({status})")
        elif status == 200:
            if wrong := _fault(request.url, content):
                self._wait(0, wrong)
                raise requests.ConnectionError(wrong)
            self.failures = 0
            self.total = int(found[1]) if (found := TOTAL.search(content)) else 0
        return answer

    def _wait(self, asked: float, why: str = "") -> None:
        """Twice as long after each failure, and never shorter than the server asks."""
        self.failures += 1
        wait = max(min(self.delay * 2**self.failures, LONGEST_WAIT), asked)
        self.not_before = time.monotonic() + wait
        if self.told and self.left[1] > 0:
            self.told(f"arXiv does not answer: {why}; it is asked again in {wait:.0f} s")


def polite_client(
    *,
    api: str = API,
    delay: float = DELAY,
    tries: int = TRIES,
    page: int = PAGE,
    told: Callable[[str], None] | None = None,
) -> arxiv.Client:
    """A client that asks once in ``delay`` seconds and at most ``tries`` times for the same page.

    Args:
        api: the address that answers queries.
        page: papers a request.
        told: called with a sentence when an answer did not come and is asked for again.
    """
    adapter = Whole(delay, tries, told)
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
        return f"it answers with an error: {unescape((error[1] or b'').decode(errors='replace'))[:200]}"
    asked = parse_qs(urlsplit(address).query)
    if "search_query" not in asked or b"<entry" in content:
        return ""
    total = int(found[1]) if (found := TOTAL.search(content)) else -1
    start = int(asked.get("start", ["0"])[0])
    if total < 0 or start < total or (start and not total):
        return f"the page from {start} on was empty although there are papers"
    return ""


def _reason(error: requests.RequestException) -> tuple[str, bool]:
    """Why no whole answer came, in a few words, and whether that is so because no way leads there."""
    inner = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(inner, NameResolutionError):
        return "its name cannot be resolved (is there a network?)", True
    if isinstance(inner, NewConnectionError):
        said = getattr(inner.__cause__, "strerror", None) or "no connection"
        return f"it cannot be reached ({said.lower()})", True
    if isinstance(error, requests.Timeout):
        return "it takes too long", False
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted", False
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not lead there", False
    return "the connection broke", False


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
