"""Somebody is invited, joins, upvotes and comments; what they write is text and nothing else."""

import re

import pytest
from accessibility import serious_faults
from playwright.sync_api import expect
from real_desk import served

from thalweg.desk import people
from thalweg.desk.database import Database

PASSWORD = "a long winding river"


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """A desk where Ada has a name already."""
    with served(tmp_path_factory.mktemp("team")) as running:
        database = Database(running.data)
        people.join(database, people.invite(database, "Ada"), "Ada", PASSWORD)
        yield running


def join(team, page, name, *more):
    """By a link such as ``thalweg desk invite`` prints; its host is this desk's."""
    path = re.search(r"/join/\S+", team.command("invite", name, *more))[0]
    page.goto(path)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Join").click()
    expect(page.get_by_role("banner").get_by_role("link", name=name)).to_be_visible()


def test_an_upvote_counts_at_once_once_and_for_everybody(team, reader):
    page = reader(team)
    join(team, page, "Emmy")
    page.goto("/papers")
    row = page.locator(".papers > li").nth(1)
    title = row.locator("h2").text_content()
    row.get_by_role("button", name="Upvote").click()
    expect(row.get_by_role("button", name="Upvote")).to_have_attribute("aria-pressed", "true")
    expect(row.get_by_role("button", name="Upvote")).to_contain_text("1")
    assert page.url.endswith("/papers")
    other = reader(team)
    join(team, other, "Bob")
    other.goto("/papers")
    theirs = other.locator(".papers > li").filter(has_text=title).get_by_role("button", name="Upvote")
    expect(theirs).to_contain_text("1")
    theirs.click()
    expect(theirs).to_contain_text("2")
    other.goto("/papers/trending")
    expect(other.locator(".papers h2").first).to_have_text(title)
    page.reload()
    mine = page.locator(".papers > li").filter(has_text=title).get_by_role("button", name="Upvote")
    expect(mine).to_contain_text("2")
    mine.click()
    expect(mine).to_have_attribute("aria-pressed", "false")
    expect(mine).to_contain_text("1")


def test_an_upvote_works_by_keyboard_and_keeps_its_place(team, reader):
    page = reader(team)
    join(team, page, "Cleo")
    page.goto("/papers")
    button = page.locator(".papers > li").nth(3).get_by_role("button", name="Upvote")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(button).to_be_focused()


def test_a_comment_is_shown_as_markdown_and_never_runs(team, reader):
    page = reader(team)
    join(team, page, "Dora")
    page.goto("/papers/spam")
    page.get_by_label("Your comment").fill(
        "**Works** on our runs.\n\n<script>document.title = 'taken'</script>"
        "<img src=x onerror=\"document.title = 'taken'\"> [link](javascript:document.title='taken')"
    )
    page.get_by_role("button", name="Comment", exact=True).click()
    comment = page.locator(".comments > li").last
    expect(comment.locator("strong", has_text="Works")).to_be_visible()
    expect(comment).to_contain_text("Dora")
    assert page.locator(".comments :is(script, img, [onerror], a[href^='javascript'])").count() == 0
    assert "taken" not in page.title()


def test_a_reader_without_a_name_reads_and_is_shown_the_way_to_sign_in(team, reader):
    page = reader(team)
    page.goto("/papers/spam")
    assert page.get_by_role("button", name="Upvote").count() == 0
    page.get_by_role("banner").get_by_role("link", name="Sign in").click()
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/papers/spam")
    expect(page.get_by_role("banner").get_by_role("link", name="Ada")).to_be_visible()


def test_signing_in_with_a_wrong_password_says_so(team, reader):
    page = reader(team, expected="status of 40")
    page.goto("/people/sign-in")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert").filter(visible=True)).to_be_visible()
    assert page.get_by_role("banner").get_by_role("link", name="Ada").count() == 0


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_an_owner_changes_a_role_and_it_holds_at_once(team, reader, scheme, width):
    owner, page = reader(team, scheme=scheme, width=width), reader(team)
    join(team, owner, f"Olga {scheme}", "--role", "owner")
    join(team, page, f"Frida {scheme}")
    team.command("invite", f"Dora {scheme}")
    owner.goto("/people")
    owner.get_by_role("button", name=f"Take back the link for Dora {scheme}").click()
    expect(owner.get_by_role("row").filter(has_text=f"Dora {scheme}")).to_have_count(0)
    team.command("invite", f"Dora {scheme}")
    row = owner.get_by_role("row").filter(has_text=f"Frida {scheme}")
    expect(row.get_by_role("cell").first).to_contain_text("member")
    row.get_by_text("Change", exact=True).focus()
    owner.keyboard.press("Enter")
    row.get_by_role("combobox", name=f"Role of Frida {scheme}").select_option("owner")
    row.get_by_role("button", name="Change the role").click()
    expect(row.get_by_role("cell").first).to_contain_text("owner")
    page.goto("/people")
    expect(page.get_by_role("heading", name="Invite somebody")).to_be_visible()
    invited = page.get_by_role("region", name="Invited").get_by_role("row")
    expect(invited.filter(has_text=f"Dora {scheme}")).to_have_count(1)
    for one in page.locator("summary").filter(visible=True).all():
        one.click()
    assert not serious_faults(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_what_only_people_see(team, reader, scheme):
    page = reader(team, scheme=scheme)
    join(team, page, f"Erin {scheme}")
    page.goto("/papers/spam")
    page.get_by_label("Your comment").fill("> quoted\n\n1. one\n2. two\n\n`code` and\n\n```\na block\n```")
    page.get_by_role("button", name="Comment", exact=True).click()
    assert not serious_faults(page)
    for address in ("/papers", "/account", "/people/sign-in"):
        page.goto(address)
        assert not serious_faults(page), address
