"""Comments as HTML: what Markdown gives, and what no collection of attacks gets through."""

from __future__ import annotations

import html
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.desk.markdown import TAGS, rendered

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<b onmouseover=alert(1)>x</b>",
    "<style>*{display:none}</style>",
    "<base href='//evil.example'>",
    "<form action='//evil.example'><input name=csrf>",
    "<!--><script>alert(1)</script>-->",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;avascript&colon;alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](<javascript:alert(1)>)",
    '[x](https://a "onmouseover=alert(1)")',
    '[x](https://a" onmouseover="alert(1))',
    "[x]: javascript:alert(1)\n\n[x]",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.png)",
    "![x](javascript:alert(1))",
    "[![x](https://evil.example/a.png)](https://b)",
    "```<script>\nalert(1)\n```",
    '```" onload=alert(1)\nx\n```',
    "`<script>alert(1)</script>`",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "# <script>alert(1)</script>",
    "x\n===\n\ny\n---",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e<script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</script>",
    "</div></section><script>alert(1)</script>",
    "<x id=main><y class=card><z name=csrf>",
]


class Found(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    handle_startendtag = handle_starttag


def check(text):
    found = Found(rendered(text))
    assert found.tags <= TAGS
    for name, value in found.attributes:
        assert name in ("href", "rel")
        if name == "href":
            assert value.partition(":")[0].lower() in ("http", "https", "mailto") or ":" not in value
        else:
            assert value == "nofollow noreferrer ugc"


@pytest.mark.parametrize("text", ATTACKS)
def test_an_attack_becomes_text_or_nothing(text):
    check(text)
    assert "<script" not in rendered(text) and "<img" not in rendered(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*ATTACKS, "\n", "\n\n", "> ", "- ", "1. ", "*", "_", "`", "\\", "\x00"]), max_size=8
    )
)
def test_no_combination_of_attacks_gets_through(parts):
    check("".join(parts))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>\"'&/=()[]!`*_-#|:\\ \n\tabjs\u2028\ufeff", max_size=60))
def test_nothing_made_of_the_letters_of_attacks_gets_through(text):
    check(text)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("*a* **b** ~~c~~ `d`", "<p><em>a</em> <strong>b</strong> <s>c</s> <code>d</code></p>"),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("> a", "<blockquote>\n<p>a</p>\n</blockquote>"),
        ("```python\nx < 1\n```", "<pre><code>x &lt; 1\n</code></pre>"),
        ("a < b & c", "<p>a &lt; b &amp; c</p>"),
        ("# no heading", "<p># no heading</p>"),
        (
            "[a](https://b.example/?c=1&d=2)",
            '<p><a href="https://b.example/?c=1&amp;d=2" rel="nofollow noreferrer ugc">a</a></p>',
        ),
    ],
)
def test_markdown_is_what_people_expect(text, html):
    assert rendered(text).strip() == html


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "[a](" * 1250,
        "![" * 2500,
        "*a **" * 1000,
        "_a __" * 1000,
        "`" * 2500 + "a" + "`" * 2499,
        "<" * 5000,
        "> " * 2500,
        "- " * 2500,
        "|" * 5000,
        "a|" * 100 + "\n" + "-|" * 100 + "\n" + "|\n" * 2000,
        "&" * 5000,
        "\\" * 5000,
        "[a]: b\n" * 700,
    ],
    ids=range(14),
)
def test_no_comment_of_the_longest_length_holds_the_desk_up(text):
    started = time.process_time()
    check(text[:5000])
    # Not a race: growth with the square of the length would take minutes.
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "text",
    [
        "[a]: http:" + "b" * 2000 + "\n\n" + "[a]" * 990,
        "|" + "a|" * 1000 + "\n|" + "-|" * 1000 + "\n" + "x\n" * 490,
    ],
)
def test_what_repeats_itself_into_megabytes_is_shown_as_typed(text):
    made = rendered(text)
    assert len(made) < 50_000 and made.startswith("<pre><code>")
    assert html.unescape(made).count(text) == 1


@pytest.mark.parametrize("inside", [19, 20, 39, 40, 200])
@pytest.mark.parametrize("mark", ["> ", "- ", "1. "])
def test_words_nested_too_deep_are_shown_as_typed(mark, inside):
    text = mark * inside + "the words"
    made = rendered(text)
    typed = made.startswith("<pre><code>")
    assert typed == (inside * (1 if mark == "> " else 2) >= 40)
    assert (html.unescape(made).count(text) == 1) if typed else ("the words" in made)
