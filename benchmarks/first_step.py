"""Seconds that compiling adds to a recipe's first step: with nothing compiled before, and from cache.

Each figure is a process of its own on the tensors of ``optimizer_step``, and cold is cold: the headers that
Inductor compiles once for a machine are compiled anew too. Imports are not counted. What the first step does
by itself, such as making state and finding subspaces, is the first step of a second optimizer in the same
process; it is taken off and shown beside. Bars: 20 s cold, 3 s from cache.

``python -m benchmarks first_step --only AdamW GaLore``
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from benchmarks.optimizer_step import LIVELY
from thalweg import optim

ONE = """
import sys, warnings
warnings.simplefilter("ignore")
from benchmarks.optimizer_step import LIVELY, parameters, seconds
from thalweg import optim
name = sys.argv[1]
make = optim.list_recipes()[name]
print(*(seconds(make(parameters(), compile=True, **LIVELY.get(name, {}))) for _ in range(2)))
"""
COLD, CACHED = 20.0, 3.0


def first_step(name: str, cache: str) -> tuple[float, float]:
    """Seconds that a first step takes longer, in a new process that keeps what it compiles in ``cache``.

    Also seconds of a first step with everything compiled and loaded.
    """
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache}
    done = subprocess.run([sys.executable, "-c", ONE, name], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    first, own = map(float, done.stdout.split())
    return first - own, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=None)
    chosen = parser.parse_known_args()[0].only
    assert set(LIVELY) <= set(optim.list_recipes())
    print(
        "| optimizer | cold s | from cache s | the step itself s |", "|---|---|---|---|", sep="\n", flush=True
    )
    worst = [0.0, 0.0]
    for name in optim.list_recipes():
        if chosen is not None and name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as cache:
            (cold, _), (cached, own) = first_step(name, cache), first_step(name, cache)
        worst = [max(worst[0], cold), max(worst[1], cached)]
        print(f"| {name} | {cold:.1f} | {cached:.1f} | {own:.1f} |", flush=True)
    print(f"worst: {worst[0]:.1f} s cold (bar {COLD:g}), {worst[1]:.1f} s from cache (bar {CACHED:g})")


if __name__ == "__main__":
    main()
