"""The findings of a run by number, read a few at a time: a page asks only for those that it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thalweg.watch._store_schema import NAME, SEVERITY
from thalweg.watch.readings import Finding
from thalweg.watch.store import RunStore

__all__ = ["StoredFindings"]

# What stands for a row that cannot be read, as in RunStore.findings.
MARK = f"coalesce({NAME}, 'unreadable finding'), coalesce({SEVERITY}, 'info'), step"


@dataclass(frozen=True)
class StoredFindings:
    """What was found in a run, numbered from 0 in the order in which it was found.

    Args:
        damaged: told of rows that are asked for and cannot be read; without it they are an error.
    """

    store: RunStore
    run: int
    damaged: Callable[[str], None] | None = None

    def __len__(self) -> int:
        query = "select count(*) from findings where run = ?"
        return self.store.db.execute(query, (self.run,)).fetchone()[0]

    def between(self, start: int, end: int) -> list[Finding]:
        """Those from number ``start`` to before ``end``, as far as there are so many."""
        start = max(start, 0)
        return self.store.findings(self.run, start, most=max(end - start, 0), damaged=self.damaged)

    def marks(self, start: int, end: int) -> list[tuple[str, str, int]]:
        """Name, severity and step alone of those from ``start`` to before ``end``."""
        start = max(start, 0)
        query = f"select {MARK} from findings where run = ? order by id limit ? offset ?"
        return self.store.db.execute(query, (self.run, max(end - start, 0), start)).fetchall()

    def critical(self, end: int) -> int:
        """How many of those before ``end`` are critical."""
        query = f"select count(*) from findings where run = ? and {SEVERITY} = 'critical'"
        if (row := self._row(end)) is None:
            return self.store.db.execute(query, (self.run,)).fetchone()[0]
        return self.store.db.execute(f"{query} and id < ?", (self.run, row)).fetchone()[0]

    def known_before(self, names: Iterable[str], end: int) -> set[str]:
        """Of ``names`` those that were found already before number ``end``."""
        query = f"select 1 from findings where run = ? and {NAME} = ? and id < ? limit 1"
        row = self._row(end)
        row = 2**63 - 1 if row is None else row
        return {name for name in names if self.store.db.execute(query, (self.run, name, row)).fetchone()}

    def counts(self) -> dict[str, int]:
        """How many there are of each name, in the order in which they first came."""
        query = f"select {NAME}, count(*), min(id) from findings where run = ? group by 1 order by 3"
        found = self.store.db.execute(query, (self.run,))
        return {"unreadable finding" if name is None else name: count for name, count, _ in found}

    def _row(self, number: int) -> int | None:
        query = "select id from findings where run = ? order by id limit 1 offset ?"
        found = self.store.db.execute(query, (self.run, number)).fetchone()
        return found and found[0]
