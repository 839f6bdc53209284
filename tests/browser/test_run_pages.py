"""What a reader does with runs: choose readings, zoom, go from mark to finding and back, compare, return."""

from __future__ import annotations

import threading

import pytest
from playwright.sync_api import expect
from real_desk import hosted, served

from thalweg.desk.app import create_app
from thalweg.watch import Finding, Reading, RunStore


@pytest.fixture
def page(desk, reader):
    page = reader(desk)
    page.goto("/runs/1")
    expect(page.locator(".panel .now").first).to_contain_text("at step 300")
    return page


def shown(page):
    return page.locator("#panels .panel").evaluate_all("(all) => all.map((one) => one.dataset.name)")


def test_readings_are_chosen_in_place_and_a_link_shows_the_same(page):
    before = shown(page)
    page.get_by_text("Readings", exact=True).click()
    new = page.locator("#readings input:not(:checked)").first.get_attribute("value")
    page.locator("#readings").get_by_label(new, exact=True).check()
    page.locator("#readings").get_by_label("loss", exact=True).uncheck()
    wanted = [*(one for one in before if one != "loss"), new]
    assert shown(page) == wanted and "show=" + ",".join(wanted).replace(" ", "+") in page.url
    page.keyboard.press("Escape")
    page.get_by_label("Log scale").check()
    page.reload()
    assert shown(page) == wanted and page.get_by_label("Log scale").is_checked()


def test_a_drag_zooms_into_full_detail_and_the_keyboard_does_all_of_it(page):
    over = page.locator(".u-over").first.bounding_box()
    middle = over["y"] + over["height"] / 2
    with page.expect_response(lambda answer: "from=" in answer.url and "name=loss" in answer.url) as came:
        page.mouse.move(over["x"] + 0.4 * over["width"], middle)
        page.mouse.down()
        page.mouse.move(over["x"] + 0.5 * over["width"], middle, steps=4)
        page.mouse.up()
    steps = came.value.json()["step"]
    assert 110 < steps[0] < 130 and steps == list(range(steps[0], steps[-1] + 1))
    assert "from=" in page.url
    plot = page.locator(".plotted").first
    plot.focus()
    page.keyboard.press("0")
    expect(page.locator("#whole")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".panel .now").first).to_contain_text("step ")
    expect(page.locator("#summary")).to_contain_text("loss, step ")
    page.keyboard.press("+")
    expect(page.locator("#whole")).to_be_visible()


@pytest.mark.parametrize(
    ("ticks", "words"),
    [
        ([0, 5e4, 1e5, 1.5e5], ["0", "50000", "1e5", "1.5e5"]),
        ([100_000, 100_050, 100_100], ["100000", "100050", "100100"]),
        ([12_345.5, 12_345.75], ["12345.5", "12345.75"]),
        ([None, 1e-4, None, 1e-3], ["", "1e-4", "", "0.001"]),
        ([-2e6, 0, 2e6], ["-2e6", "0", "2e6"]),
    ],
)
def test_numbers_along_an_axis_are_short_and_differ(page, ticks, words):
    said = page.evaluate("async (ticks) => (await import('/static/series.js')).ticked(ticks)", ticks)
    assert said == words


def test_nothing_is_left_empty_above_the_curves_and_nothing_stands_on_code(page):
    controls, panels = (page.locator(one).bounding_box() for one in (".controls", "#panels"))
    assert controls["height"] < 60 and panels["y"] - controls["y"] - controls["height"] < 20
    button = page.locator("#finding-1 button.copy").first.bounding_box()
    top = page.locator("#finding-1 pre code").first.evaluate("(one) => one.getClientRects()[0].top")
    assert top >= button["y"] + button["height"]


def test_marks_lead_to_findings_and_findings_to_marks(page):
    mark = page.locator(".panel .mark").first
    mark.focus()
    expect(page.locator("#finding-1")).to_have_class("finding warning lit")
    page.keyboard.press("Enter")
    expect(page.locator("#finding-1")).to_be_focused()
    page.locator("#finding-1").hover()
    expect(page.locator(".mark.lit").first).to_be_attached()
    page.locator("#finding-1 a.seek").click()
    expect(page.locator(".plotted").first).to_be_focused()
    page.locator("#finding-1 button.copy").first.click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('group')")


def test_findings_near_to_each_other_share_a_mark_that_shows_the_gravest(new_desk, reader):
    with RunStore(new_desk.store, write=True) as store:
        run = store.begin("close", {})
        store.write(
            run,
            1000,
            [(0.0, Reading(step, "loss", 1.0 / step)) for step in range(1, 1001)],
            [
                Finding("warmup over", 301, "A remark.", {}, "info"),
                Finding("loss spike", 303, "It spikes.", {}, "critical"),
                Finding("plateau", 700, "Apart from both.", {}, "info"),
            ],
        )
        store.end(run, "finished")
    page = reader(new_desk)
    page.goto(f"/runs/{run}")
    marks = page.locator(".panel .mark")
    expect(marks).to_have_count(2)
    expect(marks.first).to_have_class("mark critical")
    expect(marks.first).to_have_text("‼2")
    expect(marks.first).to_have_attribute("href", "#finding-2")
    expect(marks.first).to_have_accessible_name(
        "2 findings: loss spike from step 303, critical; warmup over from step 301, info"
    )
    expect(marks.last).to_have_accessible_name("Finding: plateau from step 700, info")
    marks.first.hover()
    expect(page.locator(".finding.lit")).to_have_count(2)
    expect(page.locator("#finding-3")).not_to_have_class("finding info lit")
    marks.first.click()
    expect(page.locator("#finding-2")).to_be_focused()
    page.locator("#finding-1").hover()
    expect(marks.first).to_have_class("mark critical lit")
    # Nearer, each has its own.
    page.goto(f"/runs/{run}?from=295&to=310")
    expect(marks).to_have_count(2)
    expect(marks.first).to_have_accessible_name("Finding: warmup over from step 301, info")
    expect(marks.last).to_have_accessible_name("Finding: loss spike from step 303, critical")


def test_the_number_of_findings_that_share_a_mark_stands_in_one_line(new_desk, reader):
    with RunStore(new_desk.store, write=True) as store:
        run = store.begin("many", {})
        store.write(run, 1000, [(0.0, Reading(step, "loss", 1.0)) for step in (1, 1000)], [])
        store.write(run, 1000, [], [Finding("spike", 500, "", {}, "info") for _ in range(888)])
    page = reader(new_desk)
    page.goto(f"/runs/{run}")
    number = page.locator(".panel .mark small")
    expect(number).to_have_text("425")
    lines, inside = number.evaluate(
        """(one) => {
          const text = document.createRange();
          text.selectNodeContents(one);
          return [text.getClientRects().length, one.scrollWidth <= one.parentElement.clientWidth];
        }"""
    )
    assert lines == 1 and inside


def test_layers_and_phases_are_shown_when_asked_for(page):
    page.get_by_label("Layers").select_option("gradient norm")
    expect(page.locator("#layers .legend input:checked")).to_have_count(2)
    page.get_by_role("button", name="Phases").click()
    expect(page.locator("#phases-found h2")).to_contain_text("Phases", timeout=120_000)
    assert "phases=1" in page.url and "layers=gradient+norm" in page.url


def test_without_scripts_the_readings_can_still_be_chosen(desk, reader):
    page = reader(desk, java_script_enabled=False)
    page.goto("/runs/1")
    expect(page.get_by_text("Curves are drawn by a script")).to_be_visible()
    page.get_by_text("Readings", exact=True).click()
    page.locator("#readings button").click()
    assert "show=loss" in page.url


def test_the_list_stays_put_while_runs_come_and_the_chosen_are_compared(new_desk, reader):
    def add(name, value):
        with RunStore(new_desk.store, write=True) as store:
            run = store.begin(name, {"lr": value})
            store.write(run, 3, [(0.0, Reading(step, "loss", value / step)) for step in (1, 2, 3)], [])
            store.end(run, "finished")

    add("first", 1.0)
    add("second", 2.0)
    page = reader(new_desk)
    page.goto("/runs")
    page.locator("#run-1 input").check()
    place = page.locator("#run-1").bounding_box()
    add("third", 3.0)
    expect(page.locator("#arrived")).to_have_text("Show 1 new run")
    assert page.locator("#run-1").bounding_box() == place and page.locator("#run-1 input").is_checked()
    page.locator("#arrived").click()
    expect(page.locator("#run-3 a")).to_be_focused()
    assert page.locator("#run-1 input").is_checked()
    page.locator("#run-2 input").check()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/runs/compare?run=2&run=1")
    expect(page.locator(".plotted canvas")).to_be_visible()
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="lr"))
    expect(row.get_by_role("cell")).to_have_text(["2", "1"])


def test_pages_say_that_the_desk_is_gone_and_take_up_where_they_were_when_it_is_back(tmp_path, reader):
    with RunStore(tmp_path / "runs.sqlite", write=True) as store:
        run = store.begin("mine", {})

        def put(step, *found):
            store.write(run, step, [(0.0, Reading(step, "loss", 1.0 / step))], found)

        put(1)
        with served(tmp_path) as first:
            page, runs = (reader(first, expected="Failed to load resource") for _ in range(2))
            page.goto(f"/runs/{run}")
            runs.goto("/runs")
            put(2)
            expect(page.locator("#steps")).to_have_text("2")
            expect(runs.locator(f"#run-{run} td").nth(2)).to_have_text("2")
        for one in (page, runs):
            expect(one.locator("#lost[role=status]")).to_contain_text("No connection to the desk")
            expect(one.locator("#lost .notice")).to_be_in_viewport()
        put(3, Finding("loss spike", 3, "While nobody listened.", {}))
        port = first.address.rsplit(":", 1)[1]
        with served(tmp_path, "--port", port):
            expect(page.locator("#findings")).to_contain_text("While nobody listened.")
            expect(page.locator("#steps")).to_have_text("3")
            expect(page.locator(".panel .now")).to_contain_text("at step 3")
            for one in (page, runs):
                expect(one.locator("#lost")).to_have_text("")


def test_pages_say_that_a_desk_hangs_and_take_up_where_they_were_when_it_goes_on(
    tmp_path, reader, monkeypatch
):
    monkeypatch.setattr("thalweg.desk.run_events.HEARTBEAT", 1.0)
    app = create_app(tmp_path / "runs.sqlite", folder=tmp_path / "data")
    goes_on = threading.Event()
    with RunStore(tmp_path / "runs.sqlite", write=True) as store, hosted(app) as desk:
        run = store.begin("mine", {})
        page = reader(desk, expected="Failed to load resource")
        with page.expect_event("requestfinished", lambda asked: "/curve" in asked.url):
            page.goto(f"/runs/{run}")
        store.write(run, 1, [(0.0, Reading(1, "loss", 1.0))], [])
        expect(page.locator("#steps")).to_have_text("1")
        page.wait_for_timeout(1500)  # a heartbeat says how often they come
        # On a busy machine the page may just be coming back.
        while not (viewers := app.state.lookout.viewers()):
            page.wait_for_timeout(50)
        try:
            viewers[0]._loop.call_soon_threadsafe(goes_on.wait, 120)
            expect(page.locator("#lost[role=status]")).to_contain_text("No connection to the desk")
            store.write(run, 2, [(0.0, Reading(2, "loss", 0.5))], [])
        finally:
            goes_on.set()
        expect(page.locator("#steps")).to_have_text("2")
        expect(page.locator("#lost")).to_have_text("")


def test_a_finding_that_comes_while_an_older_page_is_read_gets_a_mark_there_and_is_listed_on_the_latest(
    new_desk, reader
):
    with RunStore(new_desk.store, write=True) as store:
        run = store.begin("goes on", {})
        rows = [(0.0, Reading(step, "loss", 1.0 / step)) for step in range(1, 1001)]
        store.write(run, 1000, rows, [Finding("spike", step, "", {}, "info") for step in range(1, 31)])
        old, latest = reader(new_desk), reader(new_desk)
        old.goto(f"/runs/{run}?findings=1")
        latest.goto(f"/runs/{run}")
        for page in (old, latest):
            expect(page.locator(".panel .mark").first).to_be_visible()
        store.write(
            run, 1001, [(0.0, Reading(1001, "loss", 0.1))], [Finding("plateau", 900, "", {}, "warning")]
        )
        for page in (old, latest):
            expect(page.locator("#count")).to_have_text("31")
        expect(latest.locator("#finding-31")).to_contain_text("plateau")
        assert old.locator("#findings > li").count() == 25 and old.locator("#finding-31").count() == 0
        old.locator('.panel .mark[data-numbers="31"]').first.click()
        old.wait_for_url("**?findings=31#finding-31")
        expect(old.locator("#finding-31")).to_be_focused()


INKED = """([name, place]) => {
  const probe = document.createElement('i');
  probe.className = name;
  document.querySelector(place).append(probe);
  const wanted = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
  probe.remove();
  return [...document.querySelectorAll(`${place} canvas`)].some((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let n = 0; n < data.length; n += 4)
      if (data[n + 3] === 255 && wanted.every((one, k) => Math.abs(data[n + k] - one) < 3)) return true;
    return false;
  });
}"""


def test_values_between_gaps_and_a_run_of_one_value_beside_others_are_seen(new_desk, reader):
    nan = float("nan")
    with RunStore(new_desk.store, write=True) as store:
        for name, values in (("gaps", [nan, 1.0, nan, 2.0, nan, 3.0, nan]), ("one", [2.0])):
            run = store.begin(name, {})
            store.write(run, 9, [(0.0, Reading(step, "loss", one)) for step, one in enumerate(values, 2)], [])
            store.end(run, "finished")
    page = reader(new_desk)
    page.goto("/runs/1")
    page.wait_for_function(INKED, arg=["line-0", "#panels"])
    page.goto("/runs/compare?run=1&run=2")
    for line in ("line-0", "line-1"):
        page.wait_for_function(INKED, arg=[line, "figure.panel"])
    places = page.evaluate(
        "async () => (await import('/static/series.js')).alone("
        "[null, 1, null, 2, 3, null, undefined, 4, undefined, null, 5, undefined, 6, null, undefined, 7])"
    )
    assert places == [1, 7, 15]
