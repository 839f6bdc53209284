"""Terminals that are narrow or know few letters, broken pipes, full disks, closed streams."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from thalweg._core.terminal import print_whole

SCRIPT = """
import torch
parameter = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([parameter], lr=0.1)
for step in range(40):
    (parameter * (float("inf") if step >= 20 else 1)).sum().backward()
    optimizer.step()
print("before")
import thalweg.watch.recorder as recorder, threading
for thread in threading.enumerate():
    if isinstance(thread, recorder.Recorder):
        thread.flush()
print("behind", flush=True)
"""


def thalweg(*arguments, encoding="utf-8", folder=None, **streams):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "thalweg", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, timeout=300, check=False, stdin=subprocess.DEVNULL, **streams
    )


def closed_pipe() -> int:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "words", [("papers", "list"), ("papers", "show", "grokfast"), ("study", "list"), ("plan", "--help")]
)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_knows_few_letters_shows_the_others_as_question_marks(words, encoding):
    found = thalweg(*words, encoding=encoding, capture_output=True)
    assert (found.returncode, found.stderr) == (0, b"")
    assert len(found.stdout.decode(encoding).split()) > 20


def test_who_does_not_listen_to_findings_still_gets_all_that_the_script_prints(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    ear = closed_pipe()
    found = thalweg("run", "train.py", folder=tmp_path, stdout=subprocess.PIPE, stderr=ear)
    os.close(ear)
    assert (found.returncode, found.stdout.split()) == (0, [b"before", b"behind"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_is_no_failure_of_the_training(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    with open("/dev/full", "wb") as full:
        found = thalweg("run", "train.py", folder=tmp_path, stdout=subprocess.PIPE, stderr=full)
    assert (found.returncode, found.stdout.split()) == (0, [b"before", b"behind"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [("papers", "list"), ("plan", "--model", "llama-60m", "--json")])
def test_output_on_a_full_disk_is_one_line(words):
    with open("/dev/full", "wb") as full:
        found = thalweg(*words, stdout=full, stderr=subprocess.PIPE)
    said = found.stderr.decode()
    assert found.returncode == 1 and said.count("\n") == 1
    assert "thalweg: the output cannot be written: " in said and "No space left" in said


@pytest.mark.parametrize(("stream", "words"), [(1, ("papers", "list")), (2, ("run", "train.py"))])
def test_a_stream_that_was_closed_before_the_start_is_nobody_who_looks(tmp_path, stream, words):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = f'exec "$0" -m thalweg "$@" {stream}>&-'
    found = subprocess.run(
        ["sh", "-c", command, sys.executable, *words],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0 and b"Traceback" not in found.stdout + found.stderr
    assert found.stdout.split() == ([] if stream == 1 else [b"before", b"behind"])


def test_a_table_on_a_narrow_terminal_holds_every_number_whole(capsys):
    table = Table(box=None)
    numbers = [f"{n}.{n:03}" for n in range(100, 110)]
    for n in range(10):
        table.add_column(f"column{n}")
    table.add_row(*numbers)
    screen = Console(width=40)
    print_whole(screen, table)
    said = capsys.readouterr().out
    assert re.findall(r"[\d.]+(?= |$)", said.splitlines()[1]) == numbers and "…" not in said
    assert screen.width == 40
    Console(width=40).print(table)
    assert "…" in capsys.readouterr().out, "as rich prints it"
