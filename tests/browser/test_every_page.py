"""Every page, light and dark, wide and on a phone: accessible, still, light in weight, self-sufficient."""

import re

import pytest
from accessibility import serious_faults

PAGES = {
    "papers": "/papers",
    "month": "/papers?month=2024-05",
    "empty-day": "/papers?date=1999-01-01",
    "trending": "/papers/trending",
    "measured-paper": "/papers/spam",
    "planned-paper": "/papers/lizard",
    "search": "/search?q=loss+spikes+after+warmup",
    "search-empty": "/search?q=zzzzqqqq",
    "search-start": "/search",
    "topics": "/topics",
    "methods": "/methods",
    "findings": "/findings",
    "runs": "/runs",
    "run": "/runs/1",
    "subscribe": "/subscribe",
    "sign-in": "/people/sign-in",
    "health": "/health",
    "missing": "/papers/no-such-paper",
}
MISSING = "404 (Not Found)"  # what the console says where the page itself is one
MOST = 200_000  # bytes of a page, uncompressed, with all that it loads but plots
PLOTS = re.compile(r"uPlot|plot\.svg|/api/runs/")


def arrive(page, address):
    """Open a page, scroll once through it as a reader would, and wait until nothing more comes."""
    answer = page.goto(address)
    assert answer.status < 500, address
    page.evaluate(
        "async () => { for (let y = 0; y < document.body.scrollHeight; y += innerHeight) {"
        " scrollTo(0, y); await new Promise(requestAnimationFrame); }"
        " await Promise.all([...document.images].map((one) => one.complete"
        " || new Promise((done) => { one.onload = one.onerror = done; }))); }"
    )
    page.wait_for_timeout(150)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(desk, reader, name, scheme):
    page = reader(desk, scheme=scheme, expected=MISSING)
    arrive(page, PAGES[name])
    assert not serious_faults(page)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light_and_fits_its_width(desk, reader, name, width):
    page = reader(desk, width=width, expected=MISSING)
    came = []
    page.on("response", lambda answer: came.append(answer))
    arrive(page, PAGES[name])
    sizes = {
        one.url: len(one.body()) for one in came if one.status in (200, 404) and not PLOTS.search(one.url)
    }
    assert 10_000 < sum(sizes.values()) <= MOST, sizes
    assert page.evaluate("document.documentElement.scrollWidth") <= width
