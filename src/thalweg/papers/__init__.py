"""The catalog: one small file a paper, found by word and by meaning, with a status nobody types.

Importing this room imports no torch, so that search and the desk start at once.
"""

from thalweg.papers.entry import Entry, UnknownPaper, find, load
from thalweg.papers.search import search
from thalweg.papers.status import status

__all__ = ["Entry", "UnknownPaper", "find", "load", "search", "status"]
