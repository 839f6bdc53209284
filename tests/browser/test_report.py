"""The report in a browser: no wider than a phone, and to be read on a dark page as on a light one."""

import re

import pytest

from thalweg.report import write_report
from thalweg.watch import Finding, Reading, Remedy, RunStore

WORD = "Pneumono" + "ultramicroscopic" * 18 + "osis"
# Of every mark in a plot, what it is painted with: its own colour, not what somebody else paints behind it.
PAINTS = """() => [...document.querySelectorAll(".plots svg :is(path, use, text)")].flatMap(one => {
  const style = getComputedStyle(one);
  return one.closest("defs, clipPath") ? [] : [style.fill, style.stroke];
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    remedy = Remedy(WORD, WORD, "spam")
    finding = Finding(WORD, 3, f"At {WORD}", {WORD: 1.0}, "critical", (WORD,), ("spam",), (remedy,))
    runs = []
    with RunStore(folder / "s", write=True) as store:
        for name in ("a", "b", "c", "d", "e", WORD):
            about = {"model": WORD, "watching": 0.03, "left_out": {WORD: WORD}}
            runs.append(store.begin(name, about))
            readings = [(0.0, Reading(step, "loss", 1.0 / step + len(runs))) for step in range(1, 9)]
            store.write(runs[-1], 8, readings, [finding])
    table = [{f"a rather long heading {column}": WORD for column in range(8)}]
    return write_report(folder / "s", folder / "page.html", runs=runs, title=WORD, lead=WORD, table=table)


@pytest.fixture
def opened(chromium, page):
    contexts = []

    def open_it(scheme="light", width=1200):
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        shown = context.new_page()
        shown.goto(page.as_uri())
        return shown

    yield open_it
    for context in contexts:
        context.close()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_is_no_wider_than_the_screen(opened, width):
    assert opened(width=width).evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_from_the_page(opened, scheme):
    shown = opened(scheme)
    back = luminance(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (back > 0.9) == (scheme == "light")
    for selector in ("body", ".quiet", "a", "summary"):
        ink = luminance(shown.evaluate(f"getComputedStyle(document.querySelector({selector!r})).color"))
        assert contrast(ink, back) >= 4.5, selector
    paints = {one for one in shown.evaluate(PAINTS) if one != "none" and not one.endswith(", 0)")}
    assert len(paints) >= 7
    # The grid is meant to be faint.
    for paint in paints - {"rgb(176, 176, 176)"}:
        assert contrast(luminance(paint), back) >= 3, paint


def luminance(colour):
    channels = [int(one) / 255 for one in re.findall(r"\d+", colour)[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return sum(share * one for share, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)
