"""A machine without a C++ compiler: steps run eagerly, say so once, and give the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import torch
from thalweg import optim

weights = []
for compile in (True, False):
    p = torch.nn.Parameter(torch.linspace(-1, 1, 35).reshape(5, 7))
    for made in (optim.AdamW([p], compile=compile), optim.PerpGrad([p], compile=compile)):
        for step in range(3):
            p.grad = torch.cos(p.detach() + step)
            made.step()
    weights.append(p.detach())
print(torch.equal(*weights))
"""


def test_steps_run_eagerly_and_say_so_once(tmp_path):
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.stdout == "True\n", done.stderr
    assert done.stderr.count("running eagerly") == 1
