"""Exact titles as numbers of 64 bits, so that a paper is found by its title among a million."""

from __future__ import annotations

from hashlib import blake2b

from thalweg.papers.names import title_name

__all__ = ["number_of"]


def number_of(title: str) -> int:
    """The same for titles that differ by case, accents and punctuation only; 0 for one without a word."""
    name = title_name(title)
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") if name else 0
