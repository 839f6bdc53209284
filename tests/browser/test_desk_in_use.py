"""A desk with people, subscribers, long discussions, many findings, mistakes: as accessible and as light."""

import re
import sqlite3
import time

import pytest
from accessibility import serious_faults
from arriving import MISSING, MOST, arrive, weighed
from playwright.sync_api import expect
from real_desk import hosted

from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.people import invite, join
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.wants import Wants
from thalweg.watch import Finding, Reading, Remedy, RunStore

PASSWORD = "a long winding river"
COMMENT = "It **works** on `our` runs, see [this](https://example.org/a):\n\n> quoted\n\n1. one\n2. two\n\n"
READ = [
    "long discussion",
    "its beginning",
    "many findings",
    "findings from one on",
    "phases and layers",
    "compare",
    "nothing to compare",
    "an invitation",
    "a used invitation",
    "to confirm",
    "confirmed already",
    "choices",
    "unsubscribe",
    "401",
    "404",
    "500",
    "503",
]
CODE = (
    "opt = optim.Descent(\n" + "    optim.clip_spikes(threshold=50),  # what was far too large\n" * 12 + ")"
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("used")
    _runs(folder / "runs.sqlite")
    made = create_app(folder / "runs.sqlite", folder=folder / "data")

    @made.get("/broken")
    def broken():
        raise RuntimeError("a mistake of ours")

    @made.get("/full")
    def full():
        raise sqlite3.OperationalError("database or disk is full")

    return made


@pytest.fixture(scope="module")
def busy(app):
    """The application in this process, where its mistakes can be made."""
    with hosted(app) as running:
        yield running


def _runs(path):
    """Two runs; the first with layers, two phases and fifty findings that have much to say."""
    with RunStore(path, write=True) as store:
        for name in ("many findings", "another"):
            run = store.begin(name, {"lr": len(name) / 100, "optimizer": "AdamW", "budget": 0.03})
            rows = [
                (0.0, Reading(step, reading, (3.0 if step < 200 else 1.0) + step % 7 / 50, layers))
                for step in range(1, 401)
                for reading, layers in (("loss", {}), ("gradient norm", {"in.": 1.0, "out.": 2.0 + step % 3}))
            ]
            store.write(run, 400, rows, [_finding(8 * n + 1) for n in range(50)] if "many" in name else [])
            store.end(run, "finished")


def _finding(step):
    remedies = tuple(Remedy(f"Clip what is {n} times too large", CODE, "spam") for n in (50, 100))
    evidence = {f"times the median of the last {n} steps": 1.5 * n for n in (10, 20, 50, 100, 200, 500)}
    severity = ("info", "warning", "critical")[step // 8 % 3]
    layers = tuple(f"transformer.block.{n}.attention." for n in range(60))
    return Finding(
        "gradient spike",
        step,
        "The gradient is far too large. " * 8,
        evidence,
        severity,
        layers,
        ("spam",),
        remedies,
    )


@pytest.fixture(scope="module")
def pages(app):
    """Addresses for a reader and for an owner; some hold a secret, which is made here."""
    database = app.state.database
    ada = join(database, invite(database, "Ada", "owner"), "Ada", PASSWORD)
    for n in range(50):
        last = write(database, "spam", ada, COMMENT * 40 + str(n))
    subscriptions, now = Subscriptions(database), time.time()
    wants = Wants(topics=("gradient spikes",), questions=("loss spikes after warmup",))
    tokens = []
    for name in ("bob", "cleo"):
        asked = subscriptions.ask(f"{name}@example.org", "weekly", wants, now)
        tokens.append(subscriptions.claim(asked, now)[1])
    secret = subscriptions.confirm(tokens[0], now).secret
    join(database, invite(database, "Dora"), "Dora", PASSWORD)
    reader = {
        "long discussion": "/papers/spam",
        "its beginning": "/papers/spam?comments=1",
        "many findings": "/runs/1",
        "findings from one on": "/runs/1?findings=20",
        "phases and layers": "/runs/1?phases=1&layers=gradient+norm",
        "compare": "/runs/compare?run=1&run=2",
        "nothing to compare": "/runs/compare",
        "an invitation": f"/join/{invite(database, 'Erin')}",
        "a used invitation": "/join/none",
        "to confirm": f"/subscriptions/confirm/{tokens[1]}",
        "confirmed already": f"/subscriptions/confirm/{tokens[0]}",
        "choices": f"/subscriptions/{secret}",
        "unsubscribe": f"/subscriptions/{secret}/unsubscribe",
        "401": "/people",
        "404": "/nowhere",
        "500": "/broken",
        "503": "/full",
    }
    owner = {
        "people": "/people",
        "account": "/account",
        "own comment": f"/comments/{last}/edit",
        "own discussion": "/papers/spam",
    }
    assert list(reader) == READ
    return {"": reader, "Ada": owner, "Dora": {"403": "/people"}}


def faults(page, address, width):
    """What is wrong with a page: in the eyes of axe, in bytes, in width."""
    with weighed(page) as sizes:
        arrive(page, address)
        if "phases=1" in address:
            expect(page.locator("#phases-found h2")).to_contain_text("Phases", timeout=120_000)
            expect(page.locator("#layers .legend input:checked")).to_have_count(2)
    found = serious_faults(page)
    if not 10_000 < sum(sizes.values()) <= MOST:
        found.append(sizes)
    if page.evaluate("document.documentElement.scrollWidth") > width:
        found.append("wider than the screen")
    return found


LOOKS = pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])


@LOOKS
@pytest.mark.parametrize("what", READ)
def test_what_a_reader_sees_is_accessible_light_and_fits(busy, pages, reader, scheme, width, what):
    page = reader(busy, scheme=scheme, width=width, expected=MISSING)
    answers = {}
    page.on("response", lambda answer: answers.update({answer.url: answer.status}))
    address = pages[""][what]
    assert not faults(page, address, width)
    if what.isdecimal():
        assert answers[busy.address + address] == int(what)


@LOOKS
@pytest.mark.parametrize("name", ["Ada", "Dora"])
def test_what_only_people_see_is_accessible_light_and_fits(busy, pages, reader, scheme, width, name):
    page = reader(busy, scheme=scheme, width=width, expected=MISSING)
    page.goto("/people/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/papers")
    assert not {what: found for what, one in pages[name].items() if (found := faults(page, one, width))}
    if name == "Dora":
        expect(page.get_by_text("Answer 403")).to_be_visible()


def test_findings_that_the_page_does_not_list_are_marked_and_lead_to_their_page(busy, pages, reader):
    page = reader(busy)
    page.goto("/runs/1?show=loss")
    expect(page.locator(".panel .mark").first).to_be_visible()
    numbers = page.locator(".panel .mark").evaluate_all("(all) => all.map((one) => one.dataset.numbers)")
    assert sorted(int(one) for those in numbers for one in those.split()) == list(range(1, 51))
    assert page.locator("#finding-2").count() == 0
    page.locator('.panel .mark[data-numbers~="3"]').click()
    page.wait_for_url("**/runs/1?show=loss&findings=3#finding-3")
    expect(page.locator("#finding-3")).to_be_focused()
    page.get_by_role("link", name="Later findings").click()
    page.wait_for_url("**/runs/1?show=loss&findings=*#found")


def test_findings_and_phases_are_marked_on_the_layers_too(busy, pages, reader):
    page = reader(busy)
    page.goto("/runs/1?show=loss&phases=1&layers=gradient+norm")
    for place in ("#panels", "#layers"):
        expect(page.locator(f"{place} .mark").nth(20)).to_be_visible()
    expect(page.locator("canvas")).to_have_count(2)
    page.wait_for_function(  # pixels of a row between curves that no phase has coloured
        "() => [...document.querySelectorAll('canvas')].every((canvas) => !canvas.getContext('2d')"
        ".getImageData(canvas.width * 0.2, canvas.height * 0.7, canvas.width * 0.7, 1)"
        ".data.filter((one, n) => n % 4 === 3 && !one).length)"
    )
    page.locator("#layers .legend input").first.click()
    expect(page.locator("#layers .mark").first).to_be_visible()


@pytest.mark.parametrize("old", ["/runs/1?all=1#finding-45", "/runs/1?show=loss#finding-3"])
def test_an_older_link_to_a_finding_leads_to_the_page_that_lists_it_now(busy, pages, reader, old):
    page = reader(busy)
    page.goto(old)
    number = old.rpartition("-")[2]
    page.wait_for_url(f"**findings={number}#finding-{number}")
    expect(page.locator(f"#finding-{number}")).to_be_focused()
    page.goto("/runs/1#finding-51")
    expect(page.locator(".panel .mark").first).to_be_visible()
    assert page.url.endswith("/runs/1#finding-51"), "there is none"


def test_a_long_discussion_is_read_from_its_end_to_its_beginning(busy, pages, reader):
    page = reader(busy)
    page.goto("/papers/spam")
    seen = []
    while True:
        seen += reversed(page.locator(".comments > li").evaluate_all("(all) => all.map((one) => one.id)"))
        earlier = page.get_by_role("link", name="Earlier comments")
        if not earlier.count():
            break
        place = page.url
        earlier.click()
        page.wait_for_url(re.compile(f"(?!{re.escape(place)}$)"))
    assert len(seen) == len(set(seen)) == 50
    assert seen == sorted(seen, key=lambda one: -int(one.split("-")[1]))
