"""Rows of the metadata that arXiv itself gives away as JSON lines, in the fields of an import."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

from thalweg.desk.imported import LONGEST

__all__ = ["row_of"]


def row_of(row: Any) -> Any:
    """A row of ``arxiv-metadata-oai-snapshot.json`` as an import takes it; any other as it is.

    There authors are a line of text, beside which stand family name, given name and suffix of each; and the
    versions say when each was submitted.
    """
    if not (isinstance(row, dict) and isinstance(parts := row.get("authors_parsed"), list)):
        return row
    versions = row.get("versions")
    moments = [_moment(one) for one in versions] if isinstance(versions, list) else []
    return {
        **row,
        "authors": [name for one in parts if (name := _name(one))],
        "published": moments[0] if moments else "",
        "updated": (moments[-1] if moments else "") or row.get("update_date"),
    }


def _name(parts: Any) -> str:
    if not (isinstance(parts, list) and all(isinstance(one, str) for one in parts)):
        return ""
    family, given, suffix = [*parts, "", "", ""][:3]
    return " ".join(one for one in (given, family, suffix) if one)[: LONGEST["name"]]


def _moment(version: Any) -> str:
    """When a version was submitted, as ISO 8601; empty where that is not said."""
    try:
        return parsedate_to_datetime(version["created"]).isoformat()
    except (TypeError, KeyError, ValueError):
        return ""
