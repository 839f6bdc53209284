"""What was said of an imported paper stays with it when an upgrade brings the paper into the catalog."""

from __future__ import annotations

from typing import Literal

from thalweg.desk.database import Database
from thalweg.papers.entry import load


def follow_catalog(database: Database, table: Literal["votes", "comments"]) -> None:
    """Put the catalog's key in the place of the imported paper's, which was its arXiv id."""
    papers = {row[0] for row in database.rows(f"SELECT DISTINCT paper FROM {table}")}
    # Keys of the catalog hold neither; most desks need not read it here.
    if not any("." in paper or "~" in paper for paper in papers):
        return
    keys = {entry.arxiv.replace("/", "~"): entry.key for entry in load() if entry.arxiv}
    with database.write() as on:
        for paper in papers & keys.keys():
            # Who had voted for both has one vote.
            on.execute(f"UPDATE OR IGNORE {table} SET paper = ? WHERE paper = ?", (keys[paper], paper))
            on.execute(f"DELETE FROM {table} WHERE paper = ?", (paper,))
