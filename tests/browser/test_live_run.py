"""A run is watched while it trains, in another process: steps, curve and findings come without a reload."""

import pytest
from playwright.sync_api import expect
from real_desk import training

from thalweg.watch import RunStore

LONG = 120_000  # ms; torch takes its time to start, the more on a busy machine


@pytest.mark.timeout(900)
def test_a_run_grows_on_the_page_names_what_it_finds_and_ends(new_desk, reader):
    told_bad, told_end = new_desk.store.with_name("bad"), new_desk.store.with_name("end")
    with training(new_desk.store) as process:
        page = reader(new_desk)
        page.goto("/runs")
        # The page shows the run by itself.
        expect(page.get_by_role("link", name="toy").first).to_be_visible(timeout=LONG)
        page.get_by_role("link", name="toy").first.click()
        page.wait_for_url("**/runs/1")
        steps = page.locator("#steps")
        expect(page.locator("#state")).to_have_text("running")
        before = steps.text_content()
        page.evaluate("window.stayed = true")
        expect(steps).not_to_have_text(before, timeout=LONG)
        expect(page.locator("#findings")).not_to_contain_text("not finite")
        told_bad.touch()
        expect(page.locator("#findings")).to_contain_text("not finite", timeout=LONG)
        told_end.touch()
        expect(page.locator("#state")).to_have_text("finished", timeout=LONG)
        assert process.wait() == 0
        with RunStore(new_desk.store) as store:
            expect(steps).to_have_text(f"{store.run(1).steps:,}")
        assert int(steps.text_content().replace(",", "")) > int(before.replace(",", ""))
        assert page.evaluate("window.stayed") is True
        page.wait_for_function(  # a curve is drawn
            "[...document.querySelectorAll('canvas')].some((one) => one.width > 100 && one.getContext('2d')"
            ".getImageData(0, 0, one.width, one.height).data.some((value) => value))"
        )
