"""Every page, light and dark, wide and on a phone: accessible, still, light in weight, self-sufficient."""

import pytest
from accessibility import serious_faults
from arriving import MISSING, MOST, arrive, weighed

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
    "topics-of-a-letter": "/topics?letter=s",
    "methods": "/methods",
    "findings": "/findings",
    "runs": "/runs",
    "run": "/runs/1",
    "subscribe": "/subscribe",
    "sign-in": "/people/sign-in",
    "health": "/health",
    "api": "/api",
    "missing": "/papers/no-such-paper",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(desk, reader, name, scheme):
    page = reader(desk, scheme=scheme, expected=MISSING)
    assert arrive(page, PAGES[name]).status < 500
    assert not serious_faults(page)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light_and_fits_its_width(desk, reader, name, width):
    page = reader(desk, width=width, expected=MISSING)
    with weighed(page) as sizes:
        arrive(page, PAGES[name])
    assert 10_000 < sum(sizes.values()) <= MOST, sizes
    assert page.evaluate("document.documentElement.scrollWidth") <= width
