"""What a paper may be asked for by: its arXiv id, its repository, its exact title, each in one spelling."""

from __future__ import annotations

import re

from thalweg.papers.words import tokens

_ID = r"(?P<id>\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?:v\d+)?"
_ARXIV = re.compile(
    rf"(?:arxiv[:\s]\s*|(?:https?://)?(?:dx\.)?(?:doi\.org/)?10\.48550/arxiv\."
    rf"|(?:https?://)?[a-z.]*\b(?:arxiv\.org|alphaxiv\.org|huggingface\.co)/(?:abs|pdf|html|papers|overview)/)?"
    rf"{_ID}(?:\.pdf)?/?(?:[?#].*)?",
    re.IGNORECASE,
)
_REPOSITORY = re.compile(
    r"(?:https?://)?(?:www\.)?((?:github|gitlab|codeberg|bitbucket)\.(?:com|org)/[\w.-]+/[\w.-]+?)(?:\.git)?/?(?:[?#].*)?",
    re.IGNORECASE,
)


def arxiv_named(question: str) -> str:
    """The arXiv id, without its version, that the whole question is or is an address of; else empty."""
    found = _ARXIV.fullmatch(question.strip())
    return found["id"] if found else ""


def repository_named(question: str) -> str:
    """The repository whose address the whole question is, such as ``github.com/owner/name``; else empty."""
    found = _REPOSITORY.fullmatch(question.strip())
    return found[1].lower() if found else ""


def title_name(title: str) -> str:
    """A title, or a key, without case, accents and punctuation."""
    return " ".join(tokens(title))


def name_asked(question: str) -> str:
    """What the question would be called if it were a name."""
    return arxiv_named(question).lower() or repository_named(question) or title_name(question)
