"""Kernels that an earlier process has compiled: used without tracing, and only where nothing has changed."""

import json
import os
import subprocess
import sys

import pytest

from thalweg.optim import _kept, adam
from thalweg.optim._kept import name_of

SCRIPT = """
import sys
import torch
from thalweg import optim
torch.manual_seed(0)
params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 7), (6, 6), (11,))]
optimizer = optim.list_recipes()[sys.argv[1]](params, compile=True)
for _ in range(3):
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
numbers = [p.detach().double().sum().item().hex() for p in params]
dynamo = sys.modules.get("torch._dynamo.utils")
print(repr((numbers, 0 if dynamo is None else dynamo.counters["stats"]["unique_graphs"])))
"""


def steps(recipe, cache):
    """Three steps in a process of its own: what comes out, whether it compiled, how often it traced."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, recipe], env=env, capture_output=True, text=True, check=True
    )
    numbers, traced = eval(done.stdout)
    return numbers, "compiled [" in done.stderr, traced


@pytest.mark.usefixtures("compiler")
def test_a_second_process_takes_the_same_steps_and_compiles_nothing(tmp_path):
    first, compiled, traced = steps("AdamW", tmp_path)
    assert compiled and traced
    again, compiled, traced = steps("AdamW", tmp_path)
    assert again == first and not compiled and not traced


@pytest.mark.usefixtures("compiler")
def test_kernels_with_sums_are_kept_too_and_a_broken_record_is_written_anew(tmp_path):
    first, _, _ = steps("AdamP", tmp_path)
    records = sorted((tmp_path / "thalweg").glob("*.json"))
    again, compiled, _ = steps("AdamP", tmp_path)
    assert again == first and not compiled
    records[0].write_text("{")
    for path in records[1:3]:
        path.write_text(json.dumps({**json.loads(path.read_text()), "library": str(tmp_path / "gone.so")}))
    assert steps("AdamP", tmp_path)[0] == first
    assert all(json.loads(path.read_text())["library"] != str(tmp_path / "gone.so") for path in records)


def test_a_name_depends_on_structure_and_sources_and_parts_from_elsewhere_have_none(monkeypatch):
    def local(): ...

    name = name_of((adam, "x", 1), ("flat", None))
    assert name == name_of((adam, "x", 1), ("flat", None))
    assert len({name, name_of((adam, "x", 2), ("flat", None)), name_of((adam, "x", 1), ("rows", None))}) == 3
    assert name_of(local) is None and name_of((1, (json.dumps,))) is None and name_of(object()) is None
    monkeypatch.setattr(_kept, "_surroundings", lambda: "other sources")
    assert name_of((adam, "x", 1), ("flat", None)) != name
