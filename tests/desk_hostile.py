"""A desk full of hostile papers, comments, names and runs, and a reader who notices what gets through."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.imported import checked
from thalweg.desk.library import Library
from thalweg.desk.people import everyone
from thalweg.watch import Finding, Reading, Remedy, RunStore

HOSTILE = [
    "<evil7>",
    "<script>alert(7)</script><evil7>",
    '"><script>alert(7)</script><evil7>',
    "'><img src=x onerror=alert(7)><evil7>",
    '" onmouseover="alert(7)" evil7="',
    "' onfocus=alert(7) autofocus evil7='",
    "</title><script>alert(7)</script><evil7>",
    "</textarea></pre></code></svg></template><evil7>",
    "--><evil7><!--",
    "]]><evil7>",
    "{{ 7 * 7 }}{% for x in () %}<evil7>",
    "${7*7}<evil7>",
    "javascript:alert(7)//<evil7>",
    "data:text/html,<script>alert(7)</script><evil7>",
    "\u202e<evil7>\u2028",
    "&lt;evil7&gt;&#60;evil7&#62;",
]
ADDRESSES = {"href", "src", "action", "formaction", "hx-get", "hx-post", "data", "poster", "srcset", "ping"}


def hostile_desk(folder):
    """An application whose every text that could come from outside tries to break out of its page."""
    store = folder / "runs.sqlite"
    with RunStore(store, write=True) as runs:
        for text in HOSTILE:
            run = runs.begin(text, {text: text, "unreadable": text, "optimizer": text})
            found = Finding(
                name=text,
                step=1,
                message=text,
                evidence={text: float("nan")},
                severity="warning",
                layers=(text, text),
                papers=(text, "galore"),
                remedies=(Remedy(text, text, text),),
            )
            reading = Reading(1, text, 1.0, layers={text: 1.0}, extra={text: 2.0})
            runs.write(run, 1, [(1.0, reading)], [found])
            runs.end(run, text)
    app = create_app(store, folder=folder / "desk")
    database = app.state.database
    Library(database).add(
        checked(
            {
                "id": f"doi:10.1000/evil{number}",
                "title": text,
                "abstract": text,
                "authors": [text, text],
                "organisation": text,
                "published": "2026-01-02",
            }
        )
        for number, text in enumerate(HOSTILE)
    )
    with database.write() as on:
        for number, text in enumerate(HOSTILE):
            # Not even a name that no invitation would take may break a page.
            row = (number + 1, text, f"{number}", "member", "scrypt$1$1$1$00$00", 0.0)
            on.execute(
                "INSERT INTO people (id, name, folded, role, password, since) VALUES (?,?,?,?,?,?)", row
            )
    for one in everyone(database):
        for text in HOSTILE:
            write(database, "galore", one, text)
    app.state.problems.report(HOSTILE[2], HOSTILE[2])
    return app


class Harm(HTMLParser):
    """What a browser would take from a page that the desk never puts into one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("evil7", "iframe", "object", "embed", "base", "style", "math", "applet"):
            self.found.append(f"<{tag}>")
        if tag == "script" and not (given.get("src") or "").startswith("/static/"):
            self.found.append(f"script {given}")
        if tag == "meta" and "http-equiv" in given:
            self.found.append(f"meta {given}")
        self._script = tag == "script"
        for name, value in attributes:
            if name.startswith("on") or name in ("style", "srcdoc", "evil7", "autofocus"):
                self.found.append(f"{name}={value}")
            if name in ADDRESSES and not self._fine(tag, value or ""):
                self.found.append(f"<{tag} {name}={value!r}>")

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        if self._script and data.strip():
            self.found.append(f"inline script {data[:40]!r}")
        self._script = False

    @staticmethod
    def _fine(tag, value):
        if re.match(r"/(?![/\\])|#|\?|$", value):
            return True
        return tag == "a" and bool(re.match(r"https?://|mailto:", value))


def harm(text: str) -> list[str]:
    """Everything on a page that hostile text could have put there."""
    return Harm(text).found
