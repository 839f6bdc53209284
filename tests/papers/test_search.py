"""Search finds what a practitioner means, and no text makes it fail."""

import pytest

from thalweg.papers import search
from thalweg.papers.meaning import MeaningIndex, stem
from thalweg.papers.minilm import MiniLM, model_folder
from thalweg.papers.search import load
from thalweg.papers.words import WordIndex, content_words, match

QUESTIONS = [
    ("loss spikes after warmup", {"spam", "loss-curvature", "small-scale-proxies", "gradient-clipping"}),
    ("dead neurons", {"dormant-neurons", "continual-backprop"}),
    ("my loss suddenly becomes nan", {"gradient-clipping"}),
    ("memory of optimizer state", {"galore", "frugal", "fira", "q-galore"}),
    ("merge two models", {"git-rebasin", "rethink-rebasin", "weight-matching-analysis"}),
    ("train accuracy is perfect but test accuracy stays low", {"grokfast", "softmax-collapse"}),
    ("network stops learning new tasks", {"continual-backprop", "spectral-regularization"}),
    ("scale the learning rate with the batch size", {"lr-batch-size-rmt", "surge-batch-size"}),
    ("training without backpropagation", {"forward-gnn", "likelihood-ratio"}),
    ("make the model forget some training data", {"salun"}),
    ("attention logits explode", {"small-scale-proxies"}),
    ("mislabelled examples in my dataset", {"example-forgetting"}),
    ("which learning rate schedule with cooldown", {"convex-schedule-bound", "annealing-law"}),
]
HOSTILE = [
    '"',
    '"" OR "',
    "loss AND",
    "NEAR(loss spike, 2)",
    "title:loss",
    "title : *",
    "*",
    "loss*",
    "-loss ^spike (",
    "'; DROP TABLE papers; --",
    "\x00loss\x00",
    "{key title}: x",
    "+ + +",
    "🦆 наука 损失",
    "x" * 10_000,
    "loss " * 3_000,
    " ".join(f"word{i}" for i in range(3_000)),
    "%s %d {0}",
    "\ud800",
]


def keys(question: str, limit: int = 10) -> list[str]:
    return [hit.entry.key for hit in search(question, limit)]


@pytest.mark.parametrize(("question", "wanted"), QUESTIONS)
def test_a_practitioners_question_finds_the_papers_that_answer_it(question, wanted):
    assert wanted <= set(keys(question, 6))


@pytest.mark.parametrize("key", [entry.key for entry in load()[::7]])
def test_a_paper_is_the_first_hit_for_its_own_title(key):
    title = next(entry.title for entry in load() if entry.key == key)
    assert keys(title, 3)[0] == key


@pytest.mark.parametrize("question", HOSTILE, ids=range(len(HOSTILE)))
def test_no_question_raises_whatever_characters_it_holds(question):
    assert len(search(question, 5)) <= 5


def test_syntax_characters_change_nothing():
    assert keys('"loss" (spikes*') == keys("loss spikes")
    assert keys("loss AND NOT spikes") == keys("loss and not spikes")


def test_a_question_of_unknown_words_finds_nothing():
    assert search("zzyzx qwrtplk") == []


def test_case_accents_and_punctuation_do_not_matter():
    assert keys("SCHRÖDINGER, bridge!") == keys("schrodinger bridge")
    assert keys("SCHRÖDINGER, bridge!")[0] == "light-schrodinger-bridge"


def test_a_question_made_of_stop_words_is_still_searched():
    assert content_words("how is it") == ["how", "is", "it"]
    assert content_words("how is the loss") == ["loss"]


@pytest.mark.parametrize("question", ["", "   ", None, 3])
def test_an_empty_question_is_refused(question):
    with pytest.raises(ValueError, match="question must be a text with at least one word"):
        search(question)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(ValueError, match="limit must be an integer >= 1"):
        search("loss", limit)


def test_limit_cuts_the_same_ranking():
    hits = search("loss spikes", 8)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert search("loss spikes", 3) == hits[:3]


def test_why_names_the_matching_words_and_their_place():
    (hit,) = search("dead neurons", 1)
    assert hit.why.startswith("topics: dead, neurons; meaning 0.")


def test_words_in_topics_outrank_words_in_the_text():
    index = WordIndex(load())
    assert load()[index.rank("loss spikes", 1)[0]].key in {"spam", "opposing-signals", "loss-curvature"}


def test_meaning_finds_a_paper_that_does_not_hold_the_word():
    entries = load()
    holding = {entries[row].key for row in WordIndex(entries).rank("inactive", 50)}
    near = [entries[row].key for row in (-MeaningIndex(entries).similarity("inactive")).argsort()[:8]]
    assert "continual-backprop" not in holding
    assert "continual-backprop" in near


def test_a_papers_own_text_has_similarity_near_one_and_all_are_cosines():
    entries = load()
    index = MeaningIndex(entries)
    row = next(i for i, entry in enumerate(entries) if entry.key == "spam")
    paper = entries[row]
    text = " ".join([paper.title] * 2 + list(paper.topics) * 3 + [paper.summary, paper.claim])
    similarity = index.similarity(text)
    assert similarity[row] > 0.99
    assert abs(similarity).max() <= 1 + 1e-9
    assert similarity.argmax() == row


@pytest.mark.parametrize(
    ("one", "other"), [("spikes", "spike"), ("pruning", "pruned"), ("optimizers", "optimizer")]
)
def test_inflected_words_share_a_stem(one, other):
    assert stem(one) == stem(other)


def test_a_question_of_thousands_of_words_is_no_more_work_than_a_short_one(monkeypatch):
    read = []
    embedded = MiniLM._embedded
    monkeypatch.setattr(MiniLM, "_embedded", lambda self, ids: read.append(len(ids)) or embedded(self, ids))
    words = [f"spike{i}" for i in range(3_000)]
    hits = search(" ".join(words))
    assert hits == search(" ".join(words[:100])) and hits
    assert match(" ".join(words)).count(" OR ") == 63
    assert all(count <= 20 for count in read) and bool(read) == (model_folder() is not None)


def test_a_key_finds_its_paper_first():
    assert [
        key
        for key in ("lion", "spam", "forward-gradient", "git rebasin")
        if keys(key, 1) != [key.replace(" ", "-")]
    ] == []


def test_an_id_or_a_repository_finds_its_paper_first():
    galore = next(entry for entry in load() if entry.key == "galore")
    asked = [f"arXiv:{galore.arxiv}v2", f"https://arxiv.org/pdf/{galore.arxiv}", galore.repository]
    assert [keys(question, 1) for question in asked] == [["galore"]] * 3
