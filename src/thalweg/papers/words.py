"""Search by word: SQLite's full-text index in memory, ranked by bm25, title and topics above the rest."""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable

from thalweg.papers.entry import Entry

_STOP_WORDS = """
a about after all also an and any are as at be been but by can do does for from get had has have how
i if in into is it its me my need no of on or our out over should so some such than that the their
them then there these they this to too up use very want was we what when where which while who why
will with without would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_PREFIX_FROM = 4  # shorter words match whole words only: "sam" is not "sample"
_MOST_WORDS = 64  # a pasted page must not make the index slow
_WEIGHTS = {"key": 4.0, "title": 4.0, "topics": 6.0, "summary": 1.5, "claim": 1.0}


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers of ``text``, accents removed."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z0-9]+", plain.lower())


def content_words(question: str) -> list[str]:
    """The different words of a question that carry meaning (all, when none does), 64 at most."""
    words = list(dict.fromkeys(tokens(question)))
    return ([word for word in words if word not in STOP_WORDS] or words)[:_MOST_WORDS]


def match(question: str) -> str:
    """A question to SQLite's full-text index: any of its words, or words that begin with one."""
    # Quoted, a word is never read as syntax (AND, NEAR, column names).
    words = content_words(question)
    return " OR ".join(f'"{word}"{"*" if len(word) >= _PREFIX_FROM else ""}' for word in words)


class WordIndex:
    """Every paper that holds one of the words, best first."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        # One connection serves all threads of a server; sqlite3 forbids that unless the use is serialised.
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        columns = ", ".join(_WEIGHTS)
        self._connection.execute(
            f"CREATE VIRTUAL TABLE papers USING fts5({columns}, tokenize='porter unicode61')"
        )
        self._connection.executemany(
            f"INSERT INTO papers(rowid, {columns}) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    row,
                    entry.key.replace("-", " "),
                    entry.title,
                    " ; ".join(entry.topics),
                    entry.summary,
                    entry.claim,
                )
                for row, entry in enumerate(entries)
            ],
        )

    def rank(self, question: str, limit: int) -> list[int]:
        """Positions of the matching entries, best first."""
        query = match(question)
        if not query:
            return []
        weights = ", ".join(str(weight) for weight in _WEIGHTS.values())
        with self._lock:
            rows = self._connection.execute(
                f"SELECT rowid FROM papers WHERE papers MATCH ? ORDER BY bm25(papers, {weights}) LIMIT ?",
                (query, limit),
            ).fetchall()
        return [row for (row,) in rows]
