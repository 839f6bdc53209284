"""CONTRIBUTING's example, done as a newcomer would: four files, no list edited, and it works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project with the example's files put where the text says."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "evidence", copy / "evidence")
    shutil.copy(ROOT / "pyproject.toml", copy)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
    places = dict.fromkeys(re.findall(r"`(src/thalweg/[\w/-]+\.(?:toml|py))`", text))
    blocks = re.findall(r"```(?:toml|python)\n(.*?)```", text, re.DOTALL)
    assert len(places) == len(blocks) == 3
    for place, block in zip(places, blocks, strict=True):
        (copy / place).write_text(block, encoding="utf8")
    return copy


def thalweg(checkout: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "thalweg", *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_study_runs_and_its_paper_counts_as_working(checkout):
    def listed() -> str:
        rows = thalweg(checkout, "study", "list").splitlines()
        return next(row for row in rows if row.startswith("steady-descent"))

    assert "not run" in listed()
    thalweg(checkout, "study", "run", "steady-descent")
    assert (checkout / "evidence" / "steady-descent.json").is_file()
    assert "not run" not in listed()
    assert "status: working" in thalweg(checkout, "papers", "show", "steady-descent")
    assert "312 papers" in thalweg(checkout, "papers", "list")
