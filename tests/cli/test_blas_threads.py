"""Commands that answer by small products do not share them out: numpy is found to have one thread."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from thalweg._core.blas import one_blas_thread

NAMES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
COUNT = """
import sys
import uvicorn
uvicorn.Server.run = lambda *_, **__: None
from thalweg.cli import app
assert "numpy" not in sys.modules
app(sys.argv[1:], standalone_mode=False)
from threadpoolctl import threadpool_info
print([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"])
"""


def threads(folder, *words: str, **given: str) -> set[int]:
    """What numpy's libraries have in a process of its own, after the command."""
    pytest.importorskip("threadpoolctl")
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment | given,
    )
    return set(eval(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(os.cpu_count() == 1, reason="with one processor there is never more than one thread")
@pytest.mark.parametrize("words", [("desk", "--port", "0", "--data", "desk"), ("papers", "search", "spikes")])
def test_the_command_gives_numpy_one_thread(tmp_path, words):
    assert threads(tmp_path, *words) == {1}


@pytest.mark.skipif(os.cpu_count() == 1, reason="with one processor there is never more than one thread")
def test_who_asks_for_more_gets_it(tmp_path):
    assert threads(tmp_path, "papers", "search", "spikes", OPENBLAS_NUM_THREADS="2") == {2}


def test_importing_changes_nothing():
    code = "import os\nkept = dict(os.environ)\nimport thalweg.cli, thalweg.papers\nassert kept == os.environ"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numbers_that_are_set_stay(monkeypatch):
    monkeypatch.setattr(os, "environ", {"MKL_NUM_THREADS": "4"})
    one_blas_thread()
    assert [os.environ[name] for name in NAMES] == ["1", "4", "1", "1"]
