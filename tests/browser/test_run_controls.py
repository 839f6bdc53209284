"""What fingers do with curves, and what the page of a run says beside them."""

import pytest
from playwright.sync_api import expect

from thalweg.watch import Reading, RunStore


@pytest.fixture
def touched(desk, reader):
    page = reader(desk, width=390, has_touch=True, is_mobile=True)
    page.goto("/runs/1")
    expect(page.locator(".panel .now").first).to_contain_text("at step 300")
    page.evaluate("window.clicks = 0; addEventListener('click', () => { window.clicks += 1; }, true)")
    return page


def window(page):
    """The steps in the address, of a run of 300."""
    return page.evaluate("['from', 'to'].map((one) => Number(new URL(location).searchParams.get(one)))")


def test_fingers_zoom_and_move_by_buttons_that_stay_in_reach(touched):
    def tap(name):
        before = touched.evaluate("window.clicks")
        touched.get_by_role("button", name=name, exact=True).tap()
        # The browser makes a click of it in its own time.
        touched.wait_for_function("(before) => window.clicks > before", arg=before)
        return window(touched)

    expect(touched.get_by_text("Drag over a curve")).to_be_hidden()
    expect(touched.get_by_text("Touch a curve to read it")).to_be_visible()
    expect(touched.locator(".zooms")).to_be_in_viewport(ratio=1)
    first = tap("Zoom in")
    assert 70 <= first[0] <= 80 and 220 <= first[1] <= 230
    low, high = tap("Earlier steps")
    assert low < first[0] and high - low == first[1] - first[0]
    tap("Earlier steps")
    assert tap("Earlier steps")[0] == 0
    for _ in range(6):
        last = tap("Later steps")
    assert last == [300 - (high - low), 300]
    assert tap("Zoom in")[0] > last[0]
    for _ in range(4):
        last = tap("Zoom out")
    assert last == [0, 0]
    tap("Zoom in")
    assert tap("Whole run") == [0, 0]
    expect(touched.locator("#whole")).to_be_hidden()


def test_keys_press_the_same_buttons(desk, reader):
    page = reader(desk)
    page.goto("/runs/1")
    expect(page.locator(".panel .now").first).to_contain_text("at step 300")
    expect(page.get_by_text("Drag over a curve")).to_be_visible()
    page.get_by_role("button", name="Zoom in").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    low, high = window(page)
    assert low > 100 and high == 300


def stored(desk, values, outcome="finished"):
    with RunStore(desk.store, write=True) as store:
        run = store.begin("mine", {})
        rows = [(0.0, Reading(step, "loss", value)) for step, value in enumerate(values, 1)]
        store.write(run, len(values), rows, [])
        if outcome:
            store.end(run, outcome)
    return f"/runs/{run}"


def test_what_a_log_scale_cannot_show_is_counted_and_the_cursor_tells_it(new_desk, reader):
    page = reader(new_desk)
    page.goto(stored(new_desk, [0.0] * 40) + "?log=1")
    expect(page.locator(".undrawn")).to_have_text("40 of 40 points not drawn: zero or less")
    page.locator(".plotted").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".panel .now")).to_have_text("step 40: 0")
    page.get_by_label("Log scale").uncheck()
    expect(page.locator(".undrawn")).to_be_hidden()
    page.goto(stored(new_desk, [3.0, -1.0, 2.0]))
    page.get_by_label("Log scale").check()
    expect(page.locator(".undrawn")).to_contain_text("1 of 3 points")


def test_a_run_that_ends_has_found_nothing_at_all(new_desk, reader):
    address = stored(new_desk, [1.0], outcome=None)
    page = reader(new_desk)
    page.goto(address)
    expect(page.locator("#none")).to_contain_text("Nothing was found so far.")
    with RunStore(new_desk.store, write=True) as store:
        store.end(int(address.rpartition("/")[2]), "finished")
    expect(page.locator("#none")).to_contain_text("Nothing was found.")
