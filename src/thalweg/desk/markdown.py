"""Comments are Markdown without raw HTML, pictures and headings; what comes out is then sanitised as well."""

from __future__ import annotations

import html
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt

__all__ = ["rendered"]

TAGS = {"a", "blockquote", "br", "code", "em", "hr", "li", "ol", "p", "pre", "s", "strong", "ul"} | {
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
}
LARGEST = 50_000  # bytes: a link or a table of a few lines can be made to repeat itself into megabytes
DEEPEST = 40  # levels, of which a list takes two: what lies deeper the parser leaves out
HOLDERS = {"blockquote_open", "bullet_list_open", "ordered_list_open", "list_item_open"}
# Headings would stand above those of the page; a picture would be fetched from elsewhere.
_PARSER = MarkdownIt("commonmark", {"html": False, "maxNesting": DEEPEST}).enable(["table", "strikethrough"])
_PARSER.disable(["image", "heading", "lheading", "html_block", "html_inline"])


@lru_cache(maxsize=2048)
def rendered(text: str) -> str:
    """HTML that is safe to show: few tags, and no attribute but the address of a link.

    What takes more than ``LARGEST`` bytes, or is nested ``DEEPEST`` levels deep, is shown as it was typed.
    """
    tokens = _PARSER.parse(text)
    if any(token.nesting > 0 and token.type in HOLDERS and token.level + 1 >= DEEPEST for token in tokens):
        return _typed(text)
    made = nh3.clean(
        _PARSER.renderer.render(tokens, _PARSER.options, {}),
        tags=TAGS,
        # By default every tag may have a title and a language.
        attributes={"*": set(), "a": {"href"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noreferrer ugc",
    )
    if len(made.encode()) > LARGEST:
        return _typed(text)
    return made


def _typed(text: str) -> str:
    return f"<pre><code>{html.escape(text, quote=False)}</code></pre>"
