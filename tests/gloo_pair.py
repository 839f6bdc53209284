"""Two gloo processes: how a test starts them, and how each joins and leaves the group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def run_both(script: str, folder: Path, timeout: float = 800) -> Path:
    """Run ``script FILE`` as two ranks; the file, which rank 0 has written.

    They meet over a file: a free port might be taken by somebody else before it is used.
    """
    found = folder / "found.pt"
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    place = {"MEETING": f"file://{folder}/meeting", "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(found)],
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(output)
    return found


def join() -> int:
    """Enter the group; the rank of this process."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=2)
    return rank


def leave() -> None:
    """Leave the group and end this process with exit code 0, without taking the interpreter down first.

    A thread of gloo may let go of a tensor that has a Python object while the interpreter is being taken
    down; it is then ended in the middle of C++ code, which aborts the process now and then.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
