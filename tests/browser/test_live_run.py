"""A run is watched while it trains, in another process: steps, curve and findings come without a reload."""

from playwright.sync_api import expect
from real_desk import training


def steps(page):
    return int(page.locator("#steps").text_content().replace(",", ""))


def test_a_run_grows_on_the_page_names_what_it_finds_and_ends(new_desk, reader):
    with training(new_desk.store, steps=500, bad=400, pause=0.03) as process:
        page = reader(new_desk)
        page.goto("/runs")
        # Torch takes its time to start; the page shows the run by itself.
        expect(page.get_by_role("link", name="toy").first).to_be_visible(timeout=120_000)
        page.get_by_role("link", name="toy").first.click()
        page.wait_for_url("**/runs/1")
        expect(page.locator("#state")).to_have_text("running")
        before = steps(page)
        assert before < 400 and page.locator("#findings > li").count() == 0
        page.evaluate("window.stayed = true")
        expect(page.locator("#findings")).to_contain_text("not finite", timeout=120_000)
        assert steps(page) > before
        expect(page.locator("#state")).to_have_text("finished", timeout=120_000)
        expect(page.locator("#steps")).to_have_text("500")
        assert page.evaluate("window.stayed") is True
        drawn = page.evaluate(
            "[...document.querySelectorAll('canvas')].some((one) => one.width > 100 && one.getContext('2d')"
            ".getImageData(0, 0, one.width, one.height).data.some((value) => value))"
        )
        assert drawn
        assert process.wait() == 0
