"""Words of 300 letters, in whatever papers, runs and people say: no page becomes wider than a phone."""

import time

import pytest
from arriving import MISSING, arrive
from playwright.sync_api import expect
from real_desk import hosted

from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.imported import checked
from thalweg.desk.people import invite, join
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.wants import Wants
from thalweg.watch import Finding, Reading, Remedy, RunStore

WORD = "Pneumono" + "ultramicroscopic" * 18 + "osis"
FORMULA = "$" + r"\sum_{i=1}^{n}\nabla_{\theta}\ell(x_i,y_i;\theta)" * 6 + "$"
ADA, PASSWORD = "A" * 40, "a long winding river"
READ = [
    "list",
    "search",
    "nothing",
    "imported",
    "comments",
    "finding",
    "runs",
    "run",
    "phases",
    "compare",
    "choices",
    "confirm",
    "health",
    "findings",
]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    _runs(folder / "runs.sqlite")
    app = create_app(folder / "runs.sqlite", folder=folder / "data")
    paper = {"title": f"Gradient spikes {WORD}", "abstract": f"Loss spikes {WORD} {FORMULA}"}
    authors, organisation = [WORD[:200], WORD[1:201]], WORD[:200]
    app.state.shelf.library.add(
        [
            checked({**paper, "id": f"2405.{n:05}", "authors": authors, "organisation": organisation})
            for n in range(3)
        ]
    )
    app.state.problems.report(WORD, f"{WORD} cannot be read")
    return app


def _runs(path):
    remedy, layers = Remedy(WORD, WORD, "spam"), {WORD: 1.0, WORD + "b": 2.0}
    finding = Finding(WORD, 3, f"At {WORD}", {WORD: 1.0}, "critical", tuple(layers), ("spam",), (remedy,))
    with RunStore(path, write=True) as store:
        for lr in (0.1, 0.2):
            run = store.begin(WORD, {WORD: lr, "model": WORD + str(lr), "left_out": {WORD: f"for {WORD}"}})
            rows = [
                (0.0, Reading(step, name, 2.0 if step < 200 else 1.0 + step % 7 / 50, layers))
                for step in range(1, 401)
                for name in ("loss", WORD)
            ]
            store.write(run, 400, rows, [finding])
            store.end(run, WORD)


@pytest.fixture(scope="module")
def desk(app):
    with hosted(app) as running:
        yield running


@pytest.fixture(scope="module")
def pages(app):
    database = app.state.database
    ada = join(database, invite(database, ADA, "owner"), ADA, PASSWORD)
    table = f"| {WORD} | b |\n|---|---|\n| c | {WORD} |"
    wide = "|a" * 60 + "|\n" + "|-" * 60 + "|\n" + "|b" * 60 + "|"
    code = f"`{WORD}`\n\n```\n{WORD}\n```"
    quote = "> " * 10 + "deep"
    write(
        database,
        "spam",
        ada,
        f"{WORD} [{WORD}](https://x.org/{WORD})\n\n{table}\n\n{wide}\n\n{code}\n\n{quote}",
    )
    write(database, "spam", ada, "\n".join("  " * n + "- in a list" for n in range(10)))
    wants, now = Wants(questions=(WORD[:200],)), time.time()
    subscriptions = Subscriptions(database)
    tokens = []
    for name in ("bob", "cleo"):
        asked = subscriptions.ask(f"{name}{WORD[:50]}@example.org", "weekly", wants, now)
        tokens.append(subscriptions.claim(asked, now)[1])
    secret = subscriptions.confirm(tokens[0], now).secret
    addresses = [
        "/papers?month=2024-05",
        f"/search?q=gradient+spikes+{WORD}",
        f"/search?topic={WORD}",
        "/papers/2405.00000",
        "/papers/spam",
        "/papers/about?finding=gradient+spike",
        "/runs",
        "/runs/1",
        "/runs/1?phases=1&layers=loss",
        f"/runs/compare?run=1&run=2&reading={WORD}",
        f"/subscriptions/{secret}",
        f"/subscriptions/confirm/{tokens[1]}",
        "/health",
        "/findings",
    ]
    return dict(zip(READ, addresses, strict=True))


WIDTHS = pytest.mark.parametrize("width", [320, 390])


def opened(page, address):
    """The width of a page on which everything that opens is open."""
    arrive(page, address)
    page.keyboard.press("Escape")  # the page shifts because somebody wants it
    page.evaluate("document.querySelectorAll('details:not(.menu)').forEach((one) => { one.open = true; })")
    if "phases=1" in address:
        expect(page.locator("#phases-found h2")).to_contain_text("Phases", timeout=120_000)
    return page.evaluate("document.documentElement.scrollWidth")


@WIDTHS
@pytest.mark.parametrize("what", READ)
def test_a_word_of_300_letters_makes_no_page_wider_than_a_phone(desk, pages, reader, width, what):
    assert opened(reader(desk, width=width, expected=MISSING), pages[what]) <= width


@WIDTHS
def test_long_names_of_people_do_neither(desk, pages, reader, width):
    page = reader(desk, width=width, user_agent=WORD)
    page.goto("/people/sign-in")
    page.get_by_label("Name").fill(ADA)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/papers")
    for address in ("/people", "/account", "/papers/spam", "/papers"):
        assert opened(page, address) <= width, address
