"""Headers on every answer, redirections, files, names of the host, sizes, and where the desk listens."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from desk_people import PASSWORD, asked, browser, person, send, signed_in
from thalweg.desk.app import create_app
from thalweg.desk.cli import _names
from thalweg.desk.guard import LARGEST
from thalweg.desk.limits import Limits
from thalweg.desk.local_path import local_path


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security")
    (folder / "secret.txt").write_text("not for readers")
    made = create_app(folder / "runs.sqlite", folder=folder / "desk", hosts=["testserver", "localhost"])

    @made.get("/mistake", include_in_schema=False)
    def mistake():
        raise RuntimeError("the-inside-of-the-desk")

    person(made, "Ada")
    return made


@pytest.fixture(scope="module")
def client(app):
    return browser(app)


@pytest.fixture(autouse=True)
def unlimited(app):
    app.state.limits = Limits()


ANSWERS = {
    "a page": ("GET", "/papers", 200),
    "a redirection": ("GET", "/", 303),
    "a file": ("GET", "/static/desk.css", 200),
    "a missing file": ("GET", "/static/none.css", 404),
    "a plot": ("GET", "/papers/galore/plot.svg", 200),
    "a feed": ("GET", "/feeds/papers.atom", 200),
    "JSON": ("GET", "/api/papers/galore", 200),
    "the schema": ("GET", "/api/openapi.json", 200),
    "an unknown page": ("GET", "/none", 404),
    "an unknown paper by the API": ("GET", "/api/papers/none", 404),
    "a wrong value": ("GET", "/papers?date=x", 400),
    "a wrong value by the API": ("GET", "/api/daily_papers?p=x", 422),
    "a wrong method": ("PUT", "/papers", 405),
    "a form without a token": ("POST", "/people/sign-in", 403),
    "a mistake of ours": ("GET", "/mistake", 500),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_answer_carries_the_headers(client, kind):
    method, address, code = ANSWERS[kind]
    answer = client.request(method, address)
    assert answer.status_code == code
    said = answer.headers["content-security-policy"]
    policy = dict(part.strip().partition(" ")[::2] for part in said.split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'" and policy["form-action"] == "'self'"
    assert "unsafe" not in said
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    if kind not in ("a file", "a missing file", "a plot", "a feed"):
        assert "private" in answer.headers["cache-control"]


def test_a_wrong_name_of_the_host_gets_the_headers_too(app):
    answer = browser(app, base_url="http://evil.example").get("/papers")
    assert answer.status_code == 400 and "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_mistake_of_ours_says_nothing_of_the_inside(client):
    text = client.get("/mistake").text
    assert "the-inside-of-the-desk" not in text and "Traceback" not in text and "/health" in text
    assert "the-inside-of-the-desk" not in client.get("/health").text


ELSEWHERE = [
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "\\/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "\t//evil.example",
    " //evil.example",
    "https://evil.example",
    "https:evil.example",
    "HTTP://evil.example",
    "javascript:alert(1)",
    "evil.example",
    "/%0d%0aLocation: https://evil.example",
    "/papers\r\nSet-Cookie: thalweg_session=x",
    "/ｅvil",
    "@evil.example",
    "",
]


@pytest.mark.parametrize("next", ELSEWHERE)
def test_no_address_sends_a_browser_elsewhere(app, client, next):
    client.cookies.clear()
    for answer in (
        send(client, "/people/sign-in", name="Ada", password=PASSWORD, next=next),
        send(client, "/papers/galore/vote", up="true", next=next),
    ):
        assert answer.status_code == 303
        place = answer.headers["location"]
        assert place in ("/papers", "/papers/galore")
        assert "\r" not in place and "\n" not in place and "x" not in answer.cookies.values()


def test_a_path_of_the_desk_is_gone_to(client):
    client.cookies.clear()
    answer = send(client, "/people/sign-in", name="Ada", password=PASSWORD, next="/papers?month=2024-03#x")
    assert answer.headers["location"] == "/papers?month=2024-03#x"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="/\\.:@?#%a \t\n\r\x00", max_size=12) | st.text(max_size=12))
@example("/a")
def test_what_counts_as_a_path_of_the_desk_is_one_to_every_browser(text):
    place = local_path(text, "/otherwise")
    # What the WHATWG URL standard does first: drop tabs and line ends, trim, read "\\" as "/".
    read = "".join(one for one in place if one not in "\t\n\r").strip("".join(map(chr, range(33))))
    read = read.replace("\\", "/")
    assert read.startswith("/") and not read.startswith("//")
    assert place in (text, "/otherwise")


TRAVERSALS = [
    "../secret.txt",
    "..%2fsecret.txt",
    "%2e%2e/secret.txt",
    "..%5csecret.txt",
    "....//secret.txt",
    "%252e%252e%252fsecret.txt",
    "../../../../../../etc/passwd",
    "%2fetc%2fpasswd",
    "//etc/passwd",
    "..;/secret.txt",
    "desk.css%00.txt",
    "../app.py",
    "..%2f..%2f__init__.py",
    "../templates/base.html",
]


INSIDE = re.compile(r"not for readers|root:|create_app|^def |{% block", re.M)


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_what_is_served(client, path):
    places = [
        "/static/{}",
        "/static/vendor/{}",
        "/papers/{}/plot.svg",
        "/papers/{}",
        "/runs/{}",
        "/api/papers/{}",
    ]
    for place in (*places, "/papers/galore/plot.svg?setting={}", "/feeds/{}", "/join/{}"):
        answer = client.get(place.format(path))
        assert answer.status_code in (303, 400, 404, 405, 422), place
        assert not INSIDE.search(answer.text)
    # As a client sends it that does not tidy paths up, and as the server decodes it.
    for place in places:
        for sent in {place.format(path), place.format(unquote(path)), place.format(unquote(unquote(path)))}:
            code, text = asked(client.app, sent)
            assert code in (303, 400, 404, 405, 422) and not INSIDE.search(text), sent


def test_no_address_chooses_the_run_store(client):
    for name in ("store", "path", "file", "data"):
        answer = client.get(f"/runs?{name}={quote('/etc/passwd')}")
        assert "passwd" not in answer.text.replace(quote("/etc/passwd"), "")


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("testserver", 200),
        ("localhost:8600", 200),
        ("evil.example", 400),
        ("testserver.evil", 400),
        ("", 400),
    ],
)
def test_only_the_names_of_the_desk_are_answered(client, host, code):
    assert client.get("/papers", headers={"Host": host}).status_code == code


@pytest.mark.parametrize(
    ("host", "public", "answered", "refused"),
    [
        (
            "127.0.0.1",
            "",
            ["http://127.0.0.1:8600", "http://localhost", "http://[::1]:8600"],
            "http://evil.example",
        ),
        ("::1", "", ["http://[::1]:8600", "http://localhost"], "http://evil.example"),
        ("10.0.0.5", "", ["http://10.0.0.5:8600", "http://localhost"], "http://10.0.0.6"),
        (
            "0.0.0.0",
            "https://desk.example",
            ["http://desk.example", "http://localhost"],
            "http://evil.example",
        ),
        ("fd00::5", "https://[fd00::6]:443", ["http://[fd00::5]:1", "http://[fd00::6]"], "http://[fd00::7]"),
    ],
)
def test_where_it_listens_says_by_which_names_it_is_asked(host, public, answered, refused):
    app = create_app(hosts=_names(host, public))
    assert [browser(app, base_url=one).get("/topics").status_code for one in answered] == [200] * len(
        answered
    )
    assert browser(app, base_url=refused).get("/topics").status_code == 400


def test_pages_have_no_address_from_the_host_header_and_invitations_the_configured_one(tmp_path):
    app = create_app(folder=tmp_path, public="https://desk.example")
    owner = signed_in(app, "Olga", "owner")
    owner.cookies.set("__Host-thalweg_session", owner.cookies["thalweg_session"], domain="testserver.local")
    owner = browser(app, base_url="https://evil.example", cookies=owner.cookies)
    owner.headers["cookie"] = f"__Host-thalweg_session={owner.cookies['thalweg_session']}"
    for address in ("/papers", "/papers/galore", "/account", "/people/sign-in"):
        assert "evil.example" not in owner.get(address).text.replace("next=", ""), address
    answer = send(owner, "/people/invite", name="Grace")
    assert "https://desk.example/join/" in answer.text and "evil.example/join" not in answer.text


def test_a_request_that_is_too_large_is_refused_said_or_not(app):
    client = signed_in(app, "Lars")
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    whole = client.post("/papers/galore/comments", content=b"text=" + b"x" * LARGEST, headers=kind)
    parts = (b"x" * 4096 for _ in range(LARGEST // 4096 + 2))
    streamed = client.post("/papers/galore/comments", content=parts, headers=kind)
    assert (whole.status_code, streamed.status_code) == (413, 413)


def test_a_broken_form_is_refused_and_fills_no_log(app, caplog):
    with caplog.at_level("INFO"):
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
            answer = browser(app).post("/subscribe", content=b"rubbish", headers={"Content-Type": kind})
            assert answer.status_code in (400, 403, 422)
    assert [one for one in caplog.records if "multipart" in one.name] == []


def test_the_database_is_readable_by_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        signed_in(create_app(folder=tmp_path), "Ada")
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.glob("desk.sqlite*")}
    finally:
        os.umask(before)
    assert "desk.sqlite-wal" in modes and set(modes.values()) == {0o600}


def served(tmp_path, *more):
    """What ``thalweg desk`` prints until it is told to end."""
    command = [sys.executable, "-m", "thalweg", "desk", "--port", "0", "--data", str(tmp_path), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    process.terminate()
    return line, process.communicate()[1]


def test_it_listens_on_loopback_without_a_word_and_elsewhere_with_a_warning(tmp_path):
    line, said = served(tmp_path)
    assert "http://127.0.0.1:" in line and said == ""
    line, said = served(tmp_path, "--host", "0.0.0.0")
    assert "http://127.0.0.1:" in line, "what can be opened here"
    assert "warning: the desk listens on 0.0.0.0" in said and "--public https://NAME --proxy ADDRESS" in said
    assert "any name that leads here is answered" in said


EARLY = """
import signal, sys, uvicorn.server
from thalweg.cli import app

name, run = sys.argv.pop(), uvicorn.server.asyncio_run
def ended_before(*given, **options):
    signal.raise_signal(getattr(signal, name))
    return run(*given, **options)
uvicorn.server.asyncio_run = ended_before
app()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_whoever_ends_it_before_it_answers_ends_it_without_a_word(tmp_path, name):
    command = [sys.executable, "-c", EARLY, "desk", "--port", "0", "--data", str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert (done.returncode, done.stderr) == (0, "") and "Ctrl+C" in done.stdout
