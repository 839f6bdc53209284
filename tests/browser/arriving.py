"""Coming to a page as a reader does, and what it weighed."""

import contextlib
import re

from playwright.sync_api import Error

MOST = 200_000  # bytes of a page, uncompressed, with all that it loads but plots
PLOTS = re.compile(r"uPlot|plot\.svg|/api/runs/")
MISSING = "Failed to load resource"  # what the console says where the page itself is an error


def arrive(page, address):
    """Open a page, scroll once through it as a reader would, and wait until nothing more comes."""
    answer = page.goto(address)
    page.evaluate(
        "async () => { for (let y = 0; y < document.body.scrollHeight; y += innerHeight) {"
        " scrollTo(0, y); await new Promise(requestAnimationFrame); }"
        " for (const one of document.images) one.loading = 'eager';"  # passed too fast, it never comes
        " await Promise.all([...document.images].map((one) => one.complete"
        " || new Promise((done) => { one.onload = one.onerror = done; }))); }"
    )
    page.wait_for_timeout(150)
    return answer


@contextlib.contextmanager
def weighed(page):
    """What comes until the end of the block: addresses to bytes, without plots."""
    came, sizes = [], {}

    def keep(answer):
        came.append(answer)

    page.on("response", keep)
    yield sizes
    page.remove_listener("response", keep)
    for one in came:
        if not 300 <= one.status < 400 and not PLOTS.search(one.url):
            try:
                sizes[one.url] = len(one.body())
            except Error:  # of a page that is an error the browser does not keep the icon
                sizes[one.url] = len(page.request.get(one.url).body())
