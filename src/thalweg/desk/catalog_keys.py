"""What was said of an imported paper stays with it when an upgrade brings the paper into the catalog."""

from __future__ import annotations

from typing import Literal

from thalweg.desk.database import Database
from thalweg.desk.library import Library, by_ids
from thalweg.desk.same_paper import may_be_same, plain_title
from thalweg.papers.entry import load


def follow_catalog(database: Database, table: Literal["votes", "comments"]) -> None:
    """Put the catalog's key in the place of the imported paper's, by arXiv id or else by title."""
    papers = {
        row[0] for row in database.rows(f"SELECT DISTINCT paper FROM {table} WHERE typeof(paper) = 'text'")
    }
    # Keys of the catalog hold none of these; most desks need not read it here.
    papers = {paper for paper in papers if any(sign in paper for sign in ".~:")}
    if not papers:
        return
    keys = {entry.arxiv.replace("/", "~"): entry.key for entry in load() if entry.arxiv}
    titles = {plain_title(entry.title): entry for entry in load()}
    for _, one in by_ids(Library(database), [paper.replace("~", "/") for paper in papers]):
        title = plain_title(one.title)
        entry = titles.get(title) if title else None
        if entry is not None and may_be_same(entry.arxiv or entry.key, one.id):
            keys.setdefault(one.key, entry.key)
    with database.write() as on:
        for paper in papers & keys.keys():
            # Who had voted for both has one vote.
            on.execute(f"UPDATE OR IGNORE {table} SET paper = ? WHERE paper = ?", (keys[paper], paper))
            on.execute(f"DELETE FROM {table} WHERE paper = ?", (paper,))
