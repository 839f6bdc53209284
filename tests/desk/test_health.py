"""A damaged file, a full disk and a mistake of ours are said on the health page; the desk goes on."""

import logging
import os
import shutil
import subprocess
import sys
import textwrap

import httpx
import pytest
from fastapi.testclient import TestClient

from thalweg.desk import health
from thalweg.desk.app import create_app
from thalweg.papers import entry

READABLE = ["/papers", "/papers/spam", "/search?q=loss+spike", "/topics", "/methods", "/findings"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(health, "LASTS", 0.0)


def client_of(tmp_path, **more):
    return TestClient(create_app(folder=tmp_path, **more), raise_server_exceptions=False)


def check(client, name):
    return next(one for one in client.get("/api/health").json()["checks"] if one["name"] == name)


def damage(folder):
    """Overwrite the database and its log; its shared memory stays, as after a fault of the disk."""
    for name in ("desk.sqlite", "desk.sqlite-wal"):
        if (file := folder / name).exists():
            with file.open("r+b") as raw:
                raw.seek(100)
                raw.write(b"\xff" * max(0, file.stat().st_size - 100))


def test_a_new_desk_is_well_on_the_page_and_for_a_monitor(tmp_path):
    client = client_of(tmp_path, store=tmp_path / "runs.sqlite")
    assert {check(client, name)["state"] for name in ("database", "disk", "catalog", "run store")} == {"good"}
    page = client.get("/health")
    assert page.status_code == 200 and "can be written" in page.text and str(tmp_path) not in page.text


def test_a_damaged_entry_of_the_catalog_is_named_and_the_other_papers_are_shown(tmp_path, monkeypatch):
    shutil.copytree(entry.ENTRIES, tmp_path / "entries")
    (tmp_path / "entries" / "torn.toml").write_bytes(b'key = "to\xff')
    monkeypatch.setattr(entry, "ENTRIES", tmp_path / "entries")
    with pytest.warns(UserWarning, match=r"left out of the catalog: torn\.toml"):
        client = client_of(tmp_path)
        assert [client.get(address).status_code for address in READABLE] == [200] * len(READABLE)
        assert client.get("/papers/torn").status_code == 404
        found = check(client, "catalog")
    assert found["state"] == "bad" and "torn.toml: not a TOML file" in found["what"]


def test_a_file_that_is_no_database_leaves_a_desk_that_can_be_read(tmp_path):
    (tmp_path / "desk.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    client = client_of(tmp_path)
    assert [client.get(address).status_code for address in READABLE] == [200] * len(READABLE)
    assert check(client, "database")["state"] == "bad"
    assert "file is not a database" in client.get("/health").text


def test_a_database_that_is_damaged_under_the_running_desk_is_said_and_survived(tmp_path):
    client = client_of(tmp_path)
    assert check(client, "database")["state"] == "good"
    damage(tmp_path)
    client.app.state.database.connection.close()
    del client.app.state.database._own.connection
    assert [client.get(address).status_code for address in READABLE] == [200] * len(READABLE)
    assert check(client, "database")["state"] == "bad"
    assert client.get("/health").status_code == 200


SERVED = """
import socket, sys, uvicorn
from thalweg.desk import health
from thalweg.desk.app import create_app
health.LASTS = 0.0
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(create_app(folder=sys.argv[1]), log_level="error")).run(sockets=[listening])
"""


@pytest.mark.parametrize("whole", [True, False], ids=["small", "too large to be read whole"])
def test_a_desk_that_is_served_notices_damage_behind_what_its_connections_remember(tmp_path, whole):
    program = SERVED if whole else SERVED.replace("health.LASTS", "health.READ_WHOLE = health.LASTS")
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        base = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with httpx.Client(base_url=base, timeout=240) as client:
            for _ in range(3):
                client.get("/papers/spam")
                assert check(client, "database")["state"] == "good"
            damage(tmp_path)
            assert check(client, "database")["state"] == "bad"
            assert client.get("/api/health").json()["state"] == "bad"
            assert "database" in client.get("/health").text
    finally:
        server.kill()
        server.communicate()


def test_a_damaged_run_store_is_named(tmp_path):
    store = tmp_path / "runs.sqlite"
    store.write_bytes(os.urandom(8192))
    client = client_of(tmp_path, store=store)
    assert check(client, "run store")["state"] == "bad"
    assert client.get("/papers").status_code == 200
    assert client.get("/runs").status_code == 503


def test_a_mistake_of_ours_is_a_page_with_all_headers_a_problem_and_a_trace_in_the_log(tmp_path, caplog):
    client = client_of(tmp_path)

    @client.app.get("/broken/{what}")
    def broken(what: str):
        raise RuntimeError("the password is 1234")

    with caplog.at_level(logging.ERROR):
        answer = client.get("/broken/mine")
    assert answer.status_code == 500 and "/health" in answer.text and "Traceback" not in answer.text
    well = client.get("/papers").headers
    for name in ("content-security-policy", "x-content-type-options", "referrer-policy"):
        assert answer.headers[name] == well[name]
    shown = client.get("/health").text
    assert "/broken/{what}" in shown and "RuntimeError" in shown
    assert "1234" not in shown + answer.text


FULL = """
import resource, sys
from pathlib import Path
from fastapi.testclient import TestClient
from thalweg.desk import health
from thalweg.desk.app import create_app

folder = Path(sys.argv[1])
health.LASTS = 0.0
client = TestClient(create_app(folder=folder), raise_server_exceptions=False)

def state():
    found = client.get("/api/health").json()["checks"]
    return next(one["state"] for one in found if one["name"] == "database")

assert state() == "good"
{fill}
client.app.state.problems.report("ingest", "what happened while the disk was full")
assert state() == "bad"
text = client.get("/health").text
assert "cannot be written" in text and "what happened while the disk was full" in text
for address in {readable}:
    assert client.get(address).status_code == 200, address
{free}
assert state() == "good"
print("survived")
"""
LIMITED = {
    "fill": "resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))",
    "free": "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
}
FILLED = {
    "fill": textwrap.dedent("""
        import errno
        try:
            with open(folder / "ballast", "wb", buffering=0) as ballast:
                while True:
                    ballast.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        assert "0.0 MB free" in client.get("/health").text
        """),
    "free": '(folder / "ballast").unlink()',
}


def survives(folder, how):
    code = FULL.format(readable=READABLE, **how)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout == "survived\n", done.stderr


def test_a_desk_whose_files_cannot_grow_says_so_is_read_on_and_recovers(tmp_path):
    survives(tmp_path, LIMITED)


def test_a_full_disk_is_said_and_survived(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        survives(tmp_path, FILLED)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_happened_once_is_told_for_a_month(tmp_path):
    app = create_app(folder=tmp_path)
    for what in ("long ago", "lately"):
        app.state.problems.report("digest", what)
    with app.state.database.write() as on:
        on.execute("UPDATE problems SET last = last - 86400 * iif(what = 'lately', 29, 31)")
    assert [one.what for one in app.state.problems.all()] == ["lately"]
    app.state.problems.report("digest", "now")
    rows = app.state.database.rows("SELECT what FROM problems ORDER BY last")
    assert [row["what"] for row in rows] == ["lately", "now"]
