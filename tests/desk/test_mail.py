"""Text and HTML of a message are written by one template: they cannot say different things."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path

import pytest

from thalweg.desk import mail
from thalweg.desk.settings import MailSettings
from thalweg.desk.wording import PaperText

DESK = "https://my-desk.example.org"
SETTINGS = MailSettings("127.0.0.1", 25, "none", "Desk <desk@example.org>", DESK)
MINE = f"{DESK}/subscriptions/{'a-secret' * 6}"
FULL = PaperText(
    title='A <b>title</b> & "more" of it, which is longer than a line of a mail may be at the most',
    address=f"{DESK}/papers/spike-aware-adam?a=1&b=2",
    facts="2026-01-02 · Ada Lovelace, Emmy Noether · optim · gradient spikes",
    summary="Moments are cleared when a gradient is fifty times the usual one. " * 6,
    claim="Fewer spikes & a lower loss, <i>at</i> no cost",
    helps="Helps against gradient spikes, loss spikes (automatic).",
    measured="Measured here: reproduced; loss: 1.32 (1.21 to 1.4; ratio). 5 seeds, 3 minutes, 2026-11-01.",
)
BARE = PaperText("Another title", f"{DESK}/papers/another", "", "", "", "", "Not measured here yet.")
ABOUT = {
    "digest": {
        "about": f"Your daily digest: {', '.join(f'topic {number}' for number in range(20))}",
        "papers": [FULL, BARE],
        "more": 3,
        "rest": f"{MINE}/mails/7",
        "manage": MINE,
        "every": "every day with news",
        "unsubscribe": f"{MINE}/unsubscribe",
    },
    "confirm": {
        "every": "weekly",
        "about": "<b>topics</b> & findings, " * 6 + "rooms",
        "confirm": f"{DESK}/subscriptions/confirm/{'t' * 43}",
        "days": 3,
    },
    "test": {},
}


@pytest.fixture(params=ABOUT)
def parts(request):
    """What both parts of a mail say."""
    message = mail.mail_message(
        SETTINGS,
        "ada@example.org",
        "2 papers: a <b>title</b> & more",
        request.param,
        1.8e9,
        **ABOUT[request.param],
    )
    return [message.get_body((kind,)).get_content() for kind in ("plain", "html")]


def words_of_text(text):
    return [one.removesuffix(":") for one in text.replace("\n-- \n", "\n").split()]


def words_of_page(text):
    """Without tags; a link becomes its words and its address, as in the text."""
    text = re.sub(r"<head>.*?</head>", "", text, flags=re.S)
    text = re.sub(r'<a href="([^"]+)"[^>]*>\1</a>', r"\1", text)
    text = re.sub(r'<a href="([^"]+)"[^>]*>(.*?)</a>( ·\n)?', r"\2 \1 ", text)
    return [html.unescape(one).removesuffix(":") for one in re.sub(r"<[^>]+>", " ", text).split()]


def test_both_parts_say_the_same_words_in_the_same_order(parts):
    text, page = parts
    assert words_of_text(text) == words_of_page(page) and len(words_of_text(text)) > 20


@pytest.mark.parametrize("parts", ["digest"], indirect=True)
def test_every_fact_of_a_digest_is_in_both(parts):
    about = ABOUT["digest"]
    facts = [*vars(FULL).values(), BARE.title, BARE.address, BARE.measured]
    facts += [about[name] for name in ("about", "rest", "manage", "unsubscribe")]
    for said in (" ".join(parts[0].split()), " ".join(html.unescape(re.sub(r"\s+", " ", parts[1])).split())):
        assert [one for one in facts if " ".join(one.split()) not in said] == []


def test_text_is_wrapped_and_addresses_are_whole(parts):
    long = [line for line in parts[0].splitlines() if len(line) > 76]
    assert [line for line in long if not line.startswith(DESK)] == []
    assert set(re.findall(r"https://\S+", parts[0])) == {
        html.unescape(one) for one in re.findall(r'href="([^"]+)"', parts[1])
    }


def test_what_comes_from_papers_is_escaped_in_html_alone(parts):
    text, page = parts
    assert "<b>title</b> & more" in text and "&amp;" not in text and "&lt;" not in text
    assert "<b>" not in page and "&lt;b&gt;title&lt;/b&gt; &amp; more" in page


def test_a_mail_is_one_file():
    files = Path(mail.__file__).parent.joinpath("templates", "mail").iterdir()
    assert Counter(one.name for one in files) == Counter(
        ["as_text.macros", "as_html.macros", *(f"{name}.mail" for name in ABOUT)]
    )


def test_both_forms_have_the_same_macros():
    text, page = (vars(one.get_template(one.globals["form"]).module).keys() for one in (mail.TEXT, mail.HTML))
    assert text - page == {"wrapped"} and page - text == set()
