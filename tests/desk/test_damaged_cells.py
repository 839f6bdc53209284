"""Any cell of the desk's database may be damaged: catalog pages stay, and /health does not say good."""

import asyncio
import shutil
import sqlite3
import sys
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from desk_people import person
from thalweg.desk import health
from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.imported import checked
from thalweg.desk.library import Library
from thalweg.desk.repair_cli import repair
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.votes import set_vote
from thalweg.desk.wants import Wants
from thalweg.papers import entry

TWIN = {"id": "2501.06842", "title": "SPAM: Spike-Aware Adam", "abstract": "x", "published": "2025-01-12"}
TITLE = "Gradient spikes and their remedies, a paper from outside"
OTHER = {
    "id": "2601.00002",
    "title": TITLE,
    "abstract": "Loss spikes of Adam.",
    "published": "2026-01-02T03:04:05Z",
}
CATALOG = [
    "/papers",
    "/papers?month=2025-01",
    "/papers/trending",
    "/papers/spam",
    "/papers/about?topic=loss+spikes",
    "/topics",
    "/search?q=loss+spike",
    "/findings",
    "/subscribe",
    "/feeds/papers.atom",
    "/api/daily_papers",
    "/health",
]
THEIRS = ["/papers?date=2026-01-02", "/papers/2601.00002", "/api/papers/2601.00002", "/comments/1"]
KEPT = ("spam", "galore", "grokfast", "lion")  # of the catalog, so that it takes seconds
VALUES = {
    "TEXT": (b"\xff", "x", None),
    "BLOB": ("x", None),
    "REAL": (b"\xff", "x", -1, 2**62, None),
    "INTEGER": (b"\xff", "x", -1, 2**62, None),
}
# Any text may stand there: nobody can see that it is another one.
FREE = {
    *["schemas.part", "comments.paper", "comments.text", "fetches.topic", "fetches.category", "mails.period"],
    *["mails.message", "mailed.paper", "imported.title", "imported.abstract", "imported.organisation"],
    *["imported.source", "imported.room", "imported.plain", "labels.name", "aliases.id", "people.name"],
    *["people.folded", "people.password", "invitations.hash", "invitations.name", "invitations.folded"],
    *["sessions.hash", "sessions.agent", "subscribers.folded", "subscribers.address", "subscribers.secret"],
    *["subscribers.looked", "subscription_requests.folded", "subscription_requests.address"],
    *["subscription_requests.token", "votes.paper", "problems.source", "problems.what"],
}
# Written anew as soon as it is looked at.
HEALED = ("health.", "first_seen.")


@pytest.fixture(scope="module", autouse=True)
def small_catalog(tmp_path_factory):
    folder, whole = tmp_path_factory.mktemp("entries"), entry.ENTRIES
    for key in KEPT:
        shutil.copy(whole / f"{key}.toml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "ENTRIES", folder)
        patch.setattr(health, "LASTS", 0.0)
        forget()
        yield
    forget()


def forget():
    """What the package remembers of the catalog."""
    for name, module in list(sys.modules.items()):
        if name.startswith("thalweg."):
            for one in list(vars(module).values()):
                if hasattr(one, "cache_clear"):
                    one.cache_clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A desk with something in every table."""
    folder = tmp_path_factory.mktemp("whole")
    app = create_app(folder=folder)
    database = app.state.database
    library = Library(database)
    library.add([checked(TWIN), checked(OTHER)])
    library.add([checked({"id": "pwc:gradient-spikes", "title": TITLE})])
    library.add([checked({**OTHER, "abstract": "Loss spikes of Adam, again.", "updated": "2026-01-03"})])
    ada = person(app, "Ada")
    for key in ("spam", "2601.00002"):
        set_vote(database, key, ada, True)
        write(database, key, ada, "I *saw* this.")
    asked = Subscriptions(database)
    number = asked.ask("a@example.org", "daily", Wants(topics=("spikes",)), time.time())
    subscriber = asked.confirm(asked.claim(number, time.time())[1], time.time())
    client = TestClient(app)
    client.get("/feeds/papers.atom"), client.get("/health"), client.get("/subscribe")
    app.state.problems.report("import a.jsonl", "line 1: no JSON")
    now = time.time()
    with database.write() as on:
        on.execute("INSERT INTO fetches VALUES ('spikes', '', '', '2026-01-01T00:00', 9, 0, 1, '')")
        on.execute("INSERT INTO sessions VALUES (1, 'h', ?, ?, ?, 'agent')", (ada.id, now, now + 9))
        on.execute("INSERT INTO invitations VALUES ('h', 'Bob', 'bob', 'member', NULL, ?)", (now + 9,))
        on.execute("INSERT INTO mails VALUES (1, ?, '2026-01-01', 'm', 'sent', ?)", (subscriber.id, now))
        on.execute("INSERT INTO mailed VALUES (?, '2601.00002', 0, 1)", (subscriber.id,))
        on.execute("INSERT INTO never_write VALUES (x'00')")
    database.connection.execute("VACUUM INTO ?", (str(folder / "whole.sqlite"),))
    return folder / "whole.sqlite"


def copied(whole, folder):
    folder.mkdir()
    shutil.copy(whole, folder / "desk.sqlite")
    on = sqlite3.connect(folder / "desk.sqlite", isolation_level=None)
    on.execute("PRAGMA synchronous = OFF")
    return on


def cells(on):
    """Table and column with a wrong value that damage may leave there; NULL only where it is allowed."""
    for (table,) in on.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ):
        assert on.execute(f"SELECT count(*) FROM {table}").fetchone()[0], f"put something into {table}"
        for _, column, kind, needed, _, key in on.execute(f"PRAGMA table_info({table})").fetchall():
            for value in VALUES[kind]:
                if (value is None and (needed or key)) or (value == "x" and f"{table}.{column}" in FREE):
                    continue
                yield table, column, value


def damage(on, table, column, value, last=False):
    """Put a value into one row, by force; False where the file cannot hold it there."""
    keys = [one[1] for one in on.execute(f"PRAGMA table_info({table})") if one[5]] or ["rowid"]
    names, order = ", ".join(keys), ", ".join(f"{key} {'DESC' if last else 'ASC'}" for key in keys)
    on.execute("PRAGMA ignore_check_constraints = ON")
    try:
        on.execute(
            f"UPDATE {table} SET {column} = ? "
            f"WHERE ({names}) = (SELECT {names} FROM {table} ORDER BY {order} LIMIT 1)",
            (value,),
        )
    except sqlite3.IntegrityError:
        return False
    return True


async def answers(app, addresses):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        return [await client.get(one, headers={"host": "testserver"}) for one in addresses]


def test_whatever_is_in_a_cell_the_catalog_is_shown_and_health_is_not_good(whole, tmp_path):
    on = copied(whole, tmp_path / "desk")
    app = create_app(folder=tmp_path / "desk")
    state, shelf, pristine, wrong, count = app.state, app.state.shelf, sqlite3.connect(whole), [], 0
    tried = [
        (*cell, last) for cell in cells(on) for last in ((False, True) if cell[0] == "imported" else (False,))
    ]

    async def all_of_them():
        nonlocal count
        for table, column, value, last in tried:
            if not damage(on, table, column, value, last):
                continue
            count += 1
            shelf._last, shelf._topics, shelf.finder._imported.fresh._seen = None, (None, ()), None
            state._state.pop("form_secret", None)  # all as after a start
            got = await answers(app, [*CATALOG, *THEIRS])
            cell = f"{table}.{column} = {value!r}"
            for address, answer in zip([*CATALOG, *THEIRS], got, strict=True):
                allowed = (200,) if address in CATALOG else (200, 303, 404, 503)
                if answer.status_code not in allowed:
                    wrong.append(f"{cell}: {address} is {answer.status_code}")
            well = health._worst(state.looked[1]) == "good"
            if well and value is not None and not cell.startswith(HEALED):
                wrong.append(f"{cell}: health is good")
            pristine.backup(on)

    asyncio.run(all_of_them())
    assert count > 250 and not wrong, "\n".join(wrong)


SINGLE = {
    "a day that is none": "UPDATE imported SET published = '2025-01-1x' WHERE id = '2501.06842'",
    "a day that was not counted": "UPDATE imported SET published = '2025-01-13' WHERE id = '2501.06842'",
    "a day that is not there": "DELETE FROM days WHERE day = '2025-01-12'",
    "no count of a day": "UPDATE days SET papers = 'x'",
    "no count of a label": "UPDATE labels SET papers = 'x'",
    "no count of changes": "DELETE FROM library",
    "half a letter": "UPDATE imported SET title = CAST(x'41ff42' AS TEXT), abstract = CAST(x'c3' AS TEXT)",
    "no title of a paper in both": "UPDATE imported SET title = x'ff' WHERE id = '2501.06842'",
}
UNNOTICED = ("half a letter",)


@pytest.mark.parametrize("kind", SINGLE)
def test_damage_is_named_survived_and_repaired(whole, tmp_path, kind):
    copied(whole, tmp_path / "desk").execute(SINGLE[kind])
    app = create_app(folder=tmp_path / "desk")
    got = asyncio.run(answers(app, [*CATALOG, "/api/papers/2601.00002"]))
    assert [answer.status_code for answer in got] == [200] * len(got)
    assert "cannot be read" not in got[0].text, "the imported papers that are whole are shown"
    if kind not in UNNOTICED:
        assert health._worst(health._look(app.state)) == "bad"
    repair(data=tmp_path / "desk")
    assert health._worst(health._look(app.state)) == "good"
    library = Library(app.state.database)
    assert library.count() == app.state.database.rows("SELECT count(*) FROM imported")[0][0] > 0


@pytest.mark.parametrize("value", [b"\xff", "x", -1])
def test_a_desk_starts_whatever_is_in_its_tables(whole, tmp_path, value):
    pristine = sqlite3.connect(whole)
    on = copied(whole, tmp_path / "desk")
    tables = [row[0] for row in on.execute("SELECT DISTINCT tbl_name FROM sqlite_schema")]
    for table in tables:
        for _, column, *_ in on.execute(f"PRAGMA table_info({table})").fetchall():
            damage(on, table, column, value)
        app = create_app(folder=tmp_path / "desk")
        got = asyncio.run(answers(app, ["/papers", "/papers/spam", "/health"]))
        assert [answer.status_code for answer in got] == [200] * 3, table
        pristine.backup(on)


def test_what_nobody_foresaw_leaves_the_catalog_and_is_said_on_the_page_and_logged_once(
    whole, tmp_path, monkeypatch, caplog
):
    copied(whole, tmp_path / "desk").close()
    app = create_app(folder=tmp_path / "desk")

    def broken(*_, **__):
        raise RuntimeError("nobody foresaw this")

    for name in ("newest_change", "numbered", "of_day", "newest", "with_labels", "label_counts"):
        monkeypatch.setattr(Library, name, broken)
    with caplog.at_level("ERROR"):
        got = asyncio.run(answers(app, [*CATALOG, "/papers"]))
        missing = asyncio.run(answers(app, ["/papers/2601.00002", "/api/papers/2601.00002"]))
    assert [answer.status_code for answer in got] == [200] * len(got)
    said = "Imported papers cannot be read (RuntimeError: nobody foresaw this)"
    assert said in got[0].text and "/papers/galore" in got[0].text
    assert [answer.status_code for answer in missing] == [503] * 2
    assert "nobody foresaw this" in missing[1].json()["error"]
    logged = [one.message for one in caplog.records if one.message.startswith("imported papers")]
    assert logged == ["imported papers cannot be read (RuntimeError: nobody foresaw this)"]
    (problem,) = (one for one in app.state.problems.all() if one.source == "library")
    assert "thalweg papers repair" in problem.what
    assert asyncio.run(answers(app, ["/papers?date=x"]))[0].status_code == 400, "the asker's mistake"


def test_a_damaged_comment_is_shown_as_such_and_its_neighbour_as_it_is(whole, tmp_path):
    on = copied(whole, tmp_path / "desk")
    on.execute("INSERT INTO comments (paper, person, text, at) VALUES ('spam', 1, 'I did not', 1e9)")
    for column, value in (("text", b"\xff"), ("at", "soon"), ("at", 1e300)):
        on.execute(f"UPDATE comments SET {column} = ? WHERE id = 1", (value,))
        (answer,) = asyncio.run(answers(create_app(folder=tmp_path / "desk"), ["/papers/spam"]))
        assert answer.status_code == 200
        assert "This comment is damaged" in answer.text and "I did not" in answer.text


def test_an_import_of_the_same_papers_again_heals_their_rows(whole, tmp_path):
    on = copied(whole, tmp_path / "desk")
    on.execute(
        "UPDATE imported SET authors = x'ff', topics = 'x', published = 'x', updated = x'ff', added = 'x'"
    )
    app = create_app(folder=tmp_path / "desk")
    library = Library(app.state.database)
    assert library.add([checked(TWIN), checked(OTHER)]).newer == 2
    assert health._worst(health._look(app.state)) == "good"
    assert library.count() == 2 and library.by_id("2601.00002").date == "2026-01-02"
