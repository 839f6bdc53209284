"""The desk as readers have it: the real command, a real Chromium, and no other host within reach.

Every page that a test opens is watched: an error in the console, a request to another host or a page that
shifts while it loads fails the test that saw it.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from real_desk import served, training

# How long a page may take on a machine that does other things as well, in milliseconds.
PATIENCE = 240_000
ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "runs" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",  # in a container there is no other user to drop to
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Shifts that follow a key or a click are wanted; the others are what a reader calls a jump.
SHIFTS = """
window.shifted = [];
new PerformanceObserver((list) => {
  for (const one of list.getEntries())
    if (!one.hadRecentInput)
      shifted.push([one.value, ...one.sources.map((s) => s.node?.outerHTML?.slice(0, 80) ?? String(s.node))]);
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="session")
def chromium():
    """The browser; the tests are skipped where there is none, and say how to get it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        if "CI" in os.environ:
            pytest.fail("CI is to have Chromium")
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    playwright.expect.set_options(timeout=PATIENCE / 2)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A desk that nobody writes to, over a store with one finished run that has findings."""
    folder = tmp_path_factory.mktemp("desk")
    with training(folder / "runs.sqlite", steps=300, bad=120) as process:
        assert process.wait() == 0
    with served(folder) as running:
        yield running


@pytest.fixture
def new_desk(tmp_path):
    """A desk of the test's own, which outlives the readers that are asked for after it."""
    with served(tmp_path) as running:
        yield running


@pytest.fixture
def reader(chromium, request):
    """``reader(desk, scheme="dark", width=390)`` opens a page for a new reader, watched until the end.

    ``expected`` is part of an error in the console that the test causes.
    """
    opened, wrong = [], []

    def heard(said, expected):
        if said.type == "error" and not (expected and expected in said.text):
            wrong.append(f"console: {said.text} {said.location.get('url', '')}")

    def open_for(desk, scheme="light", width=1280, height=860, expected="", **more):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, base_url=desk.address, **more
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=desk.address)
        context.add_init_script(SHIFTS)
        own = urlsplit(desk.address).netloc

        def only_here(route):
            if urlsplit(route.request.url).netloc == own:
                return route.continue_()
            wrong.append(f"a request to {route.request.url}")
            return route.abort()

        context.route("**/*", only_here)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda said: heard(said, expected))
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        opened.append((page, context))
        return page

    yield open_for
    try:
        for number, (page, _) in enumerate(opened):
            if page.url != "about:blank":
                shot(page, f"{request.node.name}-{number}" if number else request.node.name)
                assert shift(page) < 0.1
    finally:
        for _, context in opened:
            context.unroute_all(behavior="ignoreErrors")  # what is asked for in the last moment
            context.close()
    assert not wrong


def shot(page, name):
    """Keep what the page looks like."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.png", full_page=True)


def shift(page):
    """By how much of the screen the page has moved by itself (Cumulative Layout Shift without windows)."""
    found = page.evaluate("window.shifted ?? []")
    if found:
        print(page.url, found)
    return sum(one[0] for one in found)
