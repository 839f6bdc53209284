"""Catalog and imported papers in one list: names first, the rest by one scale, each list in its own order."""

from __future__ import annotations

import pytest

from thalweg.desk.common_scale import fit_to, likeness, merged
from thalweg.desk.database import Database
from thalweg.desk.imported import checked
from thalweg.desk.imported_search import rebuild
from thalweg.desk.library import Library
from thalweg.desk.paper import Paper
from thalweg.desk.shelf import Shelf
from thalweg.desk.tagging import Tags
from thalweg.papers import find, load
from thalweg.papers.names import arxiv_named, repository_named

# As many words of the catalog's titles as may be, so that its papers are near by.
ROWS = [
    {
        "id": f"2403.{number:05}",
        "title": f"{entry.title.split(':')[0]}, revisited",
        "abstract": f"We look again at what was said: {other.summary}",
        "repository": f"https://github.com/somebody/Revisited-{number}.git",
        "published": "2024-03-05",
    }
    for number, (entry, other) in enumerate(zip(load()[::6], load()[3::6], strict=False), 100)
]
SHORT = {"id": "pwc:short", "title": "On Training", "abstract": "A note on learning rates and their warmup."}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = Library(Database(tmp_path_factory.mktemp("desk")))
    library.add([checked(row) for row in [*ROWS, SHORT]])
    rebuild(library)
    library.add(
        [checked({"id": "2405.00001", "title": "Pruning of late papers", "abstract": "It came late."})]
    )
    return library


@pytest.fixture(scope="module")
def shelf(library):
    return Shelf(library)


def first(shelf, question, **filters):
    return next((one.title for one, _ in shelf.search(question, 3, **filters)), None)


def test_every_paper_is_first_for_its_own_title_whichever_collection_holds_it(shelf):
    titles = [entry.title for entry in load()[::3]] + [row["title"] for row in ROWS]
    titles += [SHORT["title"], "Pruning of late papers"]
    assert [title for title in titles if first(shelf, title) != title] == []
    assert [title for title in titles[::9] if first(shelf, f"  {title.upper()}! ") != title] == []


@pytest.mark.parametrize(
    "address",
    [
        "{}",
        "{}v3",
        "arXiv:{}",
        "arxiv: {}v1",
        "https://arxiv.org/abs/{}v2",
        "http://www.arxiv.org/pdf/{}v2.pdf",
        "https://huggingface.co/papers/{}",
        "https://doi.org/10.48550/arXiv.{}",
    ],
)
@pytest.mark.parametrize("number", ["2403.00104", "2405.00001", find("galore").arxiv])
def test_an_id_and_the_addresses_that_hold_it_find_the_paper_first(shelf, address, number):
    assert first(shelf, address.format(number)) == shelf.paper(number).title


def test_a_repository_and_a_key_find_their_paper_first(shelf):
    galore = find("galore")
    assert first(shelf, galore.repository) == first(shelf, f"{galore.repository.lower()}/") == galore.title
    assert first(shelf, "github.com/somebody/revisited-103") == ROWS[3]["title"]
    assert first(shelf, "pwc:short") == SHORT["title"]
    assert first(shelf, "forward gradient") == find("forward-gradient").title


def test_a_name_does_not_pass_what_filters_hold_back(shelf):
    assert first(shelf, ROWS[0]["title"], since="2025") != ROWS[0]["title"]
    assert first(shelf, "2403.00104", until="2023") is None
    assert first(shelf, "2403.00104", state="working") is None
    assert first(shelf, find("galore").arxiv, state="imported") != find("galore").title


@pytest.mark.parametrize(
    "text",
    ["", "2403.001", "about 2403.00104", "2403.00104 and more", "see https://arxiv.org/abs/2403.00104"],
)
def test_a_text_in_which_an_id_occurs_is_not_that_id(text):
    assert arxiv_named(text) == "" and repository_named(f"about {text}") == ""


def test_pages_of_a_mixed_list_hold_each_paper_once_whatever_their_size(shelf):
    whole = [one.id for one, _ in shelf.search("training of neural networks", 300)]
    pages = [
        one.id for k in range(15) for one, _ in shelf.search("training of neural networks", 20, start=20 * k)
    ]
    assert whole == pages and len(set(whole)) == len(whole) > 100


def test_each_list_keeps_its_order_and_the_worths_decide_between_them():
    ours = [("a", 0.2), ("b", 0.9), ("c", 0.1)]
    theirs = [(1, 0.5), (2, 0.15)]
    assert merged(ours, theirs) == ["a", 1, "b", 2, "c"]
    assert merged(ours, []) == ["a", "b", "c"] and merged([("a", 0.5)], [(1, 0.5)]) == ["a", 1]


NOTHING = (lambda texts: None), (lambda stems: (0 * stems.astype(int), 0))


def test_of_two_texts_the_one_that_fits_is_worth_more_in_whichever_collection_it_is():
    asked = "loss spikes and clipping of gradients"
    fits = "Gradient clipping removes loss spikes", "The gradients of spikes are clipped."
    other = "Pruning of convolutional filters", "Filters of small norm are removed."
    for one, two in ((find("spam"), None), (None, find("spam"))):
        papers = [Paper("x", *fits, entry=one), Paper("y", *other, entry=two)]
        better, worse = fit_to(asked, papers, *NOTHING)
        assert better > worse


def test_a_text_about_something_else_is_like_nothing_of_the_catalog():
    cake = ("Sourdough", "Flour, water and yeast are kneaded, rise for a night and are baked in a hot oven.")
    spikes = ("Loss spikes", "Adam's second moment lags behind the gradient, and the loss spikes.")
    papers = [Paper(one.key, one.title, one.summary, entry=one) for one in load()]
    assert likeness(cake, papers, NOTHING[0]).max() < 0.5 * likeness(spikes, papers, NOTHING[0]).max()


def test_an_irrelevant_catalog_does_not_come_before_what_was_imported(tmp_path):
    library = Library(Database(tmp_path))
    breads = ["sourdough", "rye", "focaccia", "brioche"]
    library.add(
        [
            checked(
                {
                    "id": f"2403.{k:05}",
                    "title": f"Baking {one}",
                    "abstract": f"The loss of water when {one} is baked.",
                }
            )
            for k, one in enumerate(breads)
        ]
    )
    rebuild(library)
    found = [one.title for one, _ in Shelf(library).search("loss of water in baking bread", 10)]
    assert {*found[:4]} == {f"Baking {one}" for one in breads} and len(found) == 10


def test_similar_papers_come_from_both_and_each_once(tmp_path):
    library = Library(Database(tmp_path))
    galore, fira = find("galore"), find("fira")
    again = {"title": f"{fira.title}, again", "abstract": f"{fira.summary} {fira.claim}"}
    twin = {"id": galore.arxiv, "title": galore.title, "abstract": f"{galore.summary} {galore.claim}"}
    cake = {"id": "2403.00002", "title": "Sourdough", "abstract": "Flour and water are kneaded and baked."}
    library.add([checked({"id": "2403.00001", **again}), checked(twin), checked(cake)])
    rebuild(library)
    shelf = Shelf(library)
    found = [one.title for one in shelf.similar(shelf.paper("fira"))]
    assert found[0] == again["title"] and found.count(galore.title) == 1 and "Sourdough" not in found
    assert shelf.similar(shelf.paper("2403.00001"))[0].title == fira.title


@pytest.mark.parametrize("indexed", [True, False])
def test_a_finding_is_looked_for_among_all_papers_however_many_fit_better(tmp_path, indexed):
    def tags(texts):
        return [Tags(addresses=("loss spike",) if "rare" in text else ()) for text in texts]

    library = Library(Database(tmp_path), tags)
    rows = [
        {"id": f"2401.{number:05}", "title": f"Quokka study {number}", "abstract": "quokka " * 9}
        for number in range(700)
    ]
    rare = {"id": "2312.00001", "title": "A rare one", "abstract": "Of a quokka, by the way, and much else."}
    library.add([checked(row) for row in [rare, *rows]])
    if indexed:
        rebuild(library, sentences=False)
    found = Shelf(library).search("quokka study", 5, finding="loss spike", state="imported")
    assert [one.id for one, _ in found] == ["2312.00001"]
    assert Shelf(library).search("A rare one", 5, finding="gradient spike", state="imported") == ()
