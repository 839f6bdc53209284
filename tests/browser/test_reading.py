"""What readers do: find a paper for their trouble, copy its code, see what it measured; by mouse and keys."""

import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

# What the theme is when the first element that can be painted comes.
AT_FIRST = """
new MutationObserver((_, watching) => {
  if (!document.body) return;
  window.atFirst = document.documentElement.dataset.theme;
  watching.disconnect();
}).observe(document, { childList: true, subtree: true });
"""
# What is said for two seconds, kept for a test that looks later.
HEARD = """
new MutationObserver(([{ target }]) => {
  if (target.textContent) document.body.dataset.heard = target.textContent;
}).observe(document.getElementById("said"), { childList: true });
"""
SMALL = """
[...document.querySelectorAll("header a, button, .pager a, .tabs a")].filter((one) => one.checkVisibility())
  .map((one) => [one.textContent.trim(), one.getBoundingClientRect().height]).filter(([, high]) => high < 24)
"""

# The loop of a reader, whose code the copied lines go into.
BEFORE = "import torch; model = torch.nn.Linear(4, 1); params = list(model.parameters())"
AFTER = "model(torch.ones(2, 4)).sum().backward(); opt.step()"


def listen(page):
    expect(page.get_by_role("status")).to_have_count(1)
    page.evaluate(HEARD)


def focused(page):
    return page.evaluate("document.activeElement.textContent.trim()")


LOOP = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
opt = torch.optim.AdamW(model.parameters())
batch = torch.randn(32, 64), torch.randint(10, (32,))
loader = [batch] * 2
loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def test_a_newcomer_finds_code_for_a_trouble_in_three_clicks_and_sees_what_it_measured(desk, reader):
    page = reader(desk)
    page.goto("/papers")
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Findings").click()
    page.get_by_role("link", name="loss spike", exact=True).click()
    section = page.locator("section", has=page.get_by_role("heading", name="loss spike", exact=True))
    section.get_by_role("link").first.click()
    page.wait_for_url("**/papers/*")
    expect(page.locator(".measured").first).to_contain_text("seeds")
    expect(page.locator("aside .verdict").first).to_be_visible()
    listen(page)
    page.get_by_role("button", name="Copy").first.click()
    expect(page.locator("body")).to_have_attribute("data-heard", "Code copied")
    code = page.evaluate("navigator.clipboard.readText()")
    assert "from thalweg" in code
    subprocess.run([sys.executable, "-c", LOOP + code], check=True)
    plot = page.locator("img.plot").first
    plot.scroll_into_view_if_needed()
    expect(plot).to_be_visible()
    page.evaluate(
        "async () => { const plot = document.querySelector('img.plot');"
        " if (!plot.complete) await new Promise((done) => { plot.onload = plot.onerror = done; }); }"
    )
    assert page.evaluate("document.querySelector('img.plot').naturalWidth") > 0


def test_search_answers_while_one_types_and_the_address_says_what_was_asked(desk, reader):
    page = reader(desk)
    page.goto("/search")
    page.locator("#q").press_sequentially("spikes after warmup", delay=20)
    expect(page).to_have_url(re.compile(r"/search\?q=spikes(\+|%20)after(\+|%20)warmup$"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("spikes after warmup")
    expect(page.locator(".papers > li").first).to_be_visible()
    found = page.locator(".papers h2").all_text_contents()
    page.reload()
    assert page.locator(".papers h2").all_text_contents() == found
    expect(page.locator("#q")).to_have_value("spikes after warmup")
    page.get_by_label("Room").select_option("optim")
    expect(page).to_have_url(re.compile("room=optim"))
    expect(page.locator("#q")).to_have_value("spikes after warmup")
    expect(page.locator(".papers h2")).not_to_have_text(found)
    page.go_back()
    expect(page.locator(".papers h2").first).to_have_text(found[0])


def test_everything_can_be_read_and_searched_without_scripts(desk, reader):
    page = reader(desk, java_script_enabled=False)
    page.goto("/papers")
    page.get_by_role("searchbox").fill("loss spikes")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("loss spikes")
    page.get_by_label("Room").select_option("optim")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**room=optim*")
    expect(page.locator("#q")).to_have_value("loss spikes")
    page.locator(".papers h2 a").first.click()
    expect(page.get_by_role("heading", name="Code to paste")).to_be_visible()


def test_keys_search_move_open_and_are_listed(desk, reader):
    page = reader(desk)
    page.goto("/papers")
    titles = page.locator(".papers h2 a").all_text_contents()
    for key, at in (("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        assert focused(page) == titles[at]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("j/k?")
    expect(page.locator("#q")).to_have_value("j/k?")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    with page.expect_navigation():
        page.keyboard.press("n")
    assert page.locator(".papers h2 a").first.text_content() not in titles
    with page.expect_navigation():
        page.keyboard.press("p")
    assert page.locator(".papers h2 a").all_text_contents() == titles
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(titles[1])


def test_the_first_tab_stop_skips_to_the_content(desk, reader):
    page = reader(desk)
    page.goto("/papers")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_readers_choice_of_light_or_dark_outlasts_the_page_without_a_flash(desk, reader, scheme, other):
    def back():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page = reader(desk, scheme=scheme)
    page.add_init_script(AT_FIRST)
    page.goto("/papers")
    own = back()
    page.get_by_role("button", name="Dark mode").click()
    chosen = back()
    assert own != chosen
    for address in ("/topics", "/papers/spam"):
        page.goto(address)
        assert (page.evaluate("atFirst"), back()) == (other, chosen)
    page.emulate_media(color_scheme=other)
    assert back() == chosen
    page.get_by_role("button", name="Dark mode").click()
    assert back() == own


def test_on_a_phone_nothing_is_out_of_reach(desk, reader):
    page = reader(desk, width=390, height=844, has_touch=True, is_mobile=True)
    page.goto("/papers/spam")
    for name in ("Papers", "Trending", "Findings", "Methods", "Topics", "Runs"):
        link = page.get_by_role("navigation", name="Main").get_by_role("link", name=name, exact=True)
        link.scroll_into_view_if_needed()
        expect(link).to_be_in_viewport(ratio=0.9)
    assert not page.evaluate(SMALL)
    listen(page)
    page.get_by_role("button", name="Copy").first.tap()
    expect(page.locator("body")).to_have_attribute("data-heard", "Code copied")


def test_a_page_that_is_not_there_says_where_to_go(desk, reader):
    page = reader(desk, expected="404 (Not Found)")
    page.goto("/papers/no-such-paper")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")
    page.get_by_role("link", name="Newest papers").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Newest papers")
