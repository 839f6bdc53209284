"""What the health page says of imported papers, their index and their fetches, with each of them broken."""

import pytest
from fastapi.testclient import TestClient

from thalweg.desk import health
from thalweg.desk.app import create_app
from thalweg.desk.imported import Imported
from thalweg.desk.imported_search import index_folder, rebuild
from thalweg.desk.index import search_index
from thalweg.desk.library import Library

ABSTRACT = "gradient descent at the edge of stability with many words about loss spikes"


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "LASTS", 0.0)
    return TestClient(create_app(folder=tmp_path), raise_server_exceptions=False)


@pytest.fixture
def library(client):
    found = Library(client.app.state.database)
    found.add([Imported(f"2405.{k:05}", f"Paper {k}", ABSTRACT, ("A",), "2024-05-17") for k in range(50)])
    return found


def check(client, name):
    return next(one for one in client.get("/api/health").json()["checks"] if one["name"] == name)


def test_without_imports_nothing_is_missing(client):
    found = {name: check(client, name)["state"] for name in ("imported papers", "search index", "fetch")}
    assert set(found.values()) == {"good"}


def test_imported_papers_are_counted_and_a_damaged_index_is_named(client, library):
    assert check(client, "imported papers")["what"] == "50, the latest of 2024-05-17"
    rebuild(library)
    assert check(client, "search index") == {
        "name": "search index",
        "state": "good",
        "what": "holds 50 papers",
        "when": None,
    }
    for file in index_folder(library).rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:-50])
    assert check(client, "search index")["state"] == "bad"
    assert client.get("/search?q=edge+of+stability").status_code == 200


@pytest.mark.parametrize("column", ["title", "authors", "topics", "addresses", "categories"])
def test_a_corrupt_row_is_named_and_its_neighbours_are_shown(client, library, column):
    with library.database.write() as on:
        on.execute(f"UPDATE imported SET {column} = ? WHERE id = '2405.00007'", (b"\xff{not json",))
    page = client.get("/papers?date=2024-05-17&p=0")
    assert page.status_code == 200 and page.text.count("/papers/2405.0") >= 20
    assert client.get("/papers/2405.00007").status_code < 500
    assert client.get("/papers/2405.00008").status_code == 200
    found = check(client, "imported papers")
    assert found["state"] == "bad" and "damaged are the rows of 2405.00007:" in found["what"]


@pytest.mark.parametrize("name", ["rows.npy", "rooms.npy", "holders.npy"])
def test_an_index_that_was_overwritten_in_its_place_is_not_called_good(client, library, name, monkeypatch):
    rebuild(library)
    (file,) = index_folder(library).rglob(name)
    content = file.read_bytes()
    file.write_bytes(content[:128] + b"\xfe" * (len(content) - 128))
    for small in (1 << 24, 0):
        monkeypatch.setattr(search_index, "_SMALL", small)
        found = check(client, "search index")
        assert found["state"] == "bad" and f"{name} is not what was written" in found["what"]
    page = client.get("/search?q=edge+of+stability")
    assert page.status_code == 200


def test_an_interrupted_fetch_is_said_with_what_goes_on_with_it(client, library):
    with library.database.write() as on:
        row = ("loss spikes", "cs.LG", "", "2026-11-29T12:00", 200, 100, 1, "2026-11-29T12:00")
        on.execute("INSERT INTO fetches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    found = check(client, "fetch")
    assert (found["state"], found["when"]) == ("good", 1795953600.0)
    with library.database.write() as on:
        on.execute("UPDATE fetches SET done = 0")
    found = check(client, "fetch")
    assert found["state"] == "warn" and "interrupted: loss spikes in cs.LG; it goes on by" in found["what"]
    assert "thalweg papers fetch --topic 'loss spikes' --category cs.LG --max 200;" in found["what"]
    with library.database.write() as on:
        on.execute("INSERT INTO fetches SELECT 'adam', '', since, until, most, start, 0, upto FROM fetches")
    assert "it goes on by thalweg papers fetch --daily;" in check(client, "fetch")["what"]
