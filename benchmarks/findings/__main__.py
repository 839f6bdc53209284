"""``python -m benchmarks.findings``: measure how often each finding is missed, and how often it cries wolf.

The whole table takes about an hour on two cores; what is interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# Processes share the cores; threads within each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.findings.measure import ROOT, Result, jobs, measured
from benchmarks.findings.page import page
from benchmarks.findings.rates import as_text, record

DATA = ROOT / "src" / "thalweg" / "watch" / "error_rates.json"
PAGE = ROOT / "docs" / "finding-rates.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.findings", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(300, 30), metavar=("FIRST", "COUNT"))
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="scenarios whose name or finding holds this; may be given again")  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--write", action="store_true", help=f"write {_short(PAGE)} and {_short(DATA)}")
    parser.add_argument(
        "--page", action="store_true", help=f"only write {_short(PAGE)} anew from {_short(DATA)}"
    )
    chosen = parser.parse_args()
    if chosen.page:
        PAGE.write_text(page(json.loads(DATA.read_text(encoding="utf8"))), encoding="utf8")
        return
    first, count = chosen.seeds
    for name, value, least in (
        ("--seeds", first, 0),
        ("--seeds", count, 1),
        ("--processes", chosen.processes, 1),
    ):
        if value < least:
            parser.error(f"{name} must be at least {least}, got {value}")
    if chosen.write and chosen.only:
        parser.error("--write takes the whole table, got --only as well")
    try:
        wanted = jobs(range(first, first + count), chosen.only)
    except ValueError as error:
        parser.error(str(error))
    results = measured(wanted, chosen.processes)
    _complain(results)
    data = record(results, (first, count))
    text = page(data)
    print(text)
    if chosen.write:
        DATA.write_text(as_text(data), encoding="utf8")
        PAGE.write_text(text, encoding="utf8")


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _complain(results: list[Result]) -> None:
    """A run that failed has no result: say which, and end."""
    slow: dict[str, float] = {}
    for one in results:
        key = f"{one['kind']} {one['scenario']}"
        slow[key] = max(slow.get(key, 0.0), one["seconds"])
    longest = sorted(slow.items(), key=lambda pair: -pair[1])[:5]
    print("longest:", ", ".join(f"{key} {seconds:.1f} s" for key, seconds in longest), file=sys.stderr)
    failed = [one for one in results if "error" in one]
    for one in failed:
        print(f"{one['kind']} {one['scenario']}, seed {one['seed']}: {one['error']}", file=sys.stderr)
    if failed:
        sys.exit(f"{len(failed)} of {len(results)} runs failed; nothing was written")


if __name__ == "__main__":
    main()
