"""The catalog's files: every paper is there, says what it must, and a malformed file is refused by name."""

from collections import Counter
from pathlib import Path

import pytest

from thalweg.papers import Entry, UnknownPaper, find, load
from thalweg.papers.entry import ENTRIES, faults
from thalweg.watch.rule import all_rules

PAPERS = 311
BY_TIER = {1: 65, 2: 101, 3: 116, 4: 29}
ROOMS = {"optim", "probe", "nn", "surgery", "credit", "continual", "distributed", "theory", "studies"}
MINIMAL = {
    "key": '"some-paper"',
    "title": '"Some Paper"',
    "room": '"optim"',
    "form": '"part"',
    "tier": "2",
    "topics": '["momentum"]',
}


def write(folder: Path, name: str = "some-paper", **fields: str) -> Path:
    content = {**MINIMAL, **fields}
    text = "".join(f"{field} = {value}\n" for field, value in content.items() if value)
    (folder / f"{name}.toml").write_text(text, encoding="utf8")
    return folder


def test_the_catalog_holds_every_paper_once_sorted_by_key():
    keys = [entry.key for entry in load()]
    assert len(keys) == PAPERS
    assert keys == sorted(set(keys))
    assert set(keys) == {path.stem for path in ENTRIES.iterdir()}


def test_tiers_and_rooms_are_those_of_the_plan():
    assert Counter(entry.tier for entry in load()) == BY_TIER
    assert {entry.room for entry in load()} == ROOMS


def test_every_first_tier_paper_has_a_summary_and_a_claim_of_readable_length():
    for entry in load():
        if entry.tier == 1:
            assert 120 <= len(entry.summary) <= 600, entry.key
            assert 60 <= len(entry.claim) <= 400, entry.key
            assert entry.summary.endswith(".") and entry.claim.endswith("."), entry.key


def test_every_first_tier_paper_names_its_authors():
    assert [entry.key for entry in load() if entry.tier == 1 and not entry.authors] == []


def test_every_second_tier_paper_has_a_summary():
    assert [entry.key for entry in load() if entry.tier == 2 and len(entry.summary) < 60] == []


def test_every_paper_has_topics_to_be_found_by():
    assert [entry.key for entry in load() if len(entry.topics) < 3] == []


def test_no_two_papers_share_a_title_or_an_arxiv_id():
    for field in ("title", "arxiv"):
        values = Counter(getattr(entry, field) for entry in load() if getattr(entry, field))
        assert [value for value, times in values.items() if times > 1] == []


def test_every_finding_has_a_paper_that_addresses_it_and_no_paper_addresses_another():
    named = {name for rule in all_rules({}) for name in (rule.name, *rule.further)}
    assert {finding for entry in load() for finding in entry.addresses} == named


def test_find_returns_the_paper_with_link_and_date_from_its_arxiv_id():
    paper = find("grokfast")
    assert paper.title == "Grokfast: Accelerated Grokking by Amplifying Slow Gradients"
    assert paper.link == "https://arxiv.org/abs/2405.20233"
    assert paper.date == "2024-05"
    assert "thalweg.optim.Grokfast" in paper.parts


def test_an_unknown_key_is_refused_with_near_suggestions():
    with pytest.raises(UnknownPaper, match=r"'grokfsat' \(did you mean grokfast") as caught:
        find("grokfsat")
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, ValueError)


def test_a_minimal_file_is_read(tmp_path):
    assert load(write(tmp_path)) == (Entry("some-paper", "Some Paper", "optim", "part", 2, ("momentum",)),)


def test_authors_keep_their_order_beside_the_organisation(tmp_path):
    folder = write(
        tmp_path, authors='["Emmy Noether", "Ada Lovelace"]', organisation='"University of Göttingen"'
    )
    (paper,) = load(folder)
    assert paper.authors == ("Emmy Noether", "Ada Lovelace")
    assert paper.organisation == "University of Göttingen"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": '"other"'}, r"some-paper.toml: key must equal the file's name 'some-paper', got 'other'"),
        ({"key": '"Some Paper"'}, "key must be lower-case words"),
        ({"title": ""}, "field 'title' is missing"),
        ({"title": '"  "'}, "title must be a line of text"),
        ({"topics": ""}, "field 'topics' is missing"),
        ({"topics": '"momentum"'}, "topics must be a list"),
        ({"topics": '["Momentum"]'}, "topics must be a list of different short lower-case"),
        ({"topics": '["a1", "a1"]'}, "topics must be a list of different"),
        ({"topics": "[[1]]"}, "topics must be a list"),
        ({"room": '"kitchen"'}, "room must be one of optim, .* got 'kitchen'"),
        ({"form": '"idea"'}, "form must be one of part, probe, study, got 'idea'"),
        ({"tier": "5"}, "tier must be 1, 2, 3 or 4, got 5"),
        ({"tier": "true"}, "tier must be 1, 2, 3 or 4, got True"),
        ({"tier": "1.0"}, "tier must be 1, 2, 3 or 4, got 1.0"),
        ({"status": '"working"'}, "unknown field 'status'"),
        ({"sumary": '"x"'}, r"unknown field 'sumary' \(did you mean summary"),
        ({"arxiv": '"2413.00001"'}, "arxiv must be an arXiv id"),
        ({"arxiv": '"https://arxiv.org/abs/2405.20233"'}, "arxiv must be an arXiv id"),
        ({"arxiv": '"2405.20233"', "date": '"2024-06"'}, "date must be '2024-05'"),
        ({"date": '"2024-05"'}, "date must be '' as"),
        ({"repository": '"http://example.org"'}, "repository must be an address"),
        ({"parts": '["torch.optim.Adam"]'}, "parts must be a list of different import paths"),
        ({"addresses": '["Bad luck!"]'}, "addresses must be a list of different names of findings"),
        ({"authors": '"Ada Lovelace"'}, "authors must be a list of different names"),
        ({"authors": '["Ada Lovelace", "Ada Lovelace"]'}, "authors must be a list of different names"),
        ({"authors": '["Ada Lovelace", " "]'}, "authors must be a list of different names"),
        ({"authors": "[1843]"}, "authors must be a list of different names"),
        ({"organisation": '["MIT"]'}, "organisation must be a name"),
        ({"organisation": '""'}, "organisation must be a name"),
        ({"summary": "3"}, "summary must be text"),
        ({"tier": "2 2"}, "some-paper.toml: not a TOML file"),
    ],
)
def test_a_malformed_file_is_refused_naming_file_field_and_value(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(write(tmp_path, **fields))
    assert str(caught.value).startswith("some-paper.toml: ")


def test_no_file_of_the_catalog_is_left_out():
    assert faults() == ()


def test_a_key_used_by_a_second_file_is_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, name="some-other")
    with pytest.raises(ValueError, match=r"some-other\.toml: key must equal the file's name"):
        load(tmp_path)
