"""``make bench``: run every benchmark in this folder, or the ones named first on the command line.

It ends with an error, after all of them, if one missed a bar.

Folders are not among them: ``python -m benchmarks.findings`` takes an hour.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import sys
from pathlib import Path

import torch

from benchmarks._bars import MISSED


def main() -> None:
    folder = Path(__file__).parent
    infos = [info for info in pkgutil.iter_modules([str(folder)]) if not info.ispkg]
    names = sorted(info.name for info in infos if not info.name.startswith("_"))
    threads = torch.get_num_threads()
    given = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    for name in given or names:
        if name not in names:
            sys.exit(f"benchmark must be one of {', '.join(names)}; got {name!r}")
        print(f"## {name}", flush=True)
        torch.set_num_threads(threads)  # a benchmark may have chosen its own
        importlib.import_module(f"benchmarks.{name}").main()
        print(flush=True)
    if MISSED:
        sys.exit(f"bars missed: {'; '.join(MISSED)}")


main()
