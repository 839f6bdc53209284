"""The page about error rates, written from the recorded data alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.findings.judge import SLOW, SMOOTH, TIMES
from benchmarks.findings.rates import ALARMS, HITS, Rates, interval, quartiles, rates

FINDINGS = "finding", "hits", "false alarms", "info in healthy runs", "lead", "loss never shows it"
FINDINGS += ("in the twin",)
FAULTS = "finding", "fault", "run", "hits", "step planted", "step found", "lead", "loss never shows it"
FAULTS += ("alarms of other findings",)
RUNS = "run", "steps", "must reach", "healthy runs", "not reached", "runs with an alarm", "alarms", "info"
COMMAND = "python -m benchmarks.findings --seeds {} {} --write"


def page(data: dict[str, Any]) -> str:
    """Markdown."""
    first, count = data["seeds"]
    found = rates(data)
    return f"""# How often the findings are right

Made by `{COMMAND.format(first, count)}`: seeds {first} to {first + count - 1}; thresholds were set on seeds
below 300. torch {data["torch"]}, Python {data["python"]}, one thread, every sensor as often as it wants. What
each run does is written in `benchmarks/findings/planted` and `benchmarks/findings/healthy`; the numbers
behind this page are in `src/thalweg/watch/error_rates.json`.

{_extent(data)}

{_target(found, data)}

## By finding

- Hit: in a run with the fault, the finding came, at the step at which the fault was planted or later.
- False alarm: in a healthy run it came as a `warning` or `critical`. One of severity `info` describes and is
  no alarm; those are counted apart.
- In brackets: the exact binomial interval (Clopper and Pearson) at 95 % confidence.
- Lead: steps from the one at which the finding was told to the one from which on the loss shows the fault:
  its running median over {SMOOTH} steps stays away from that of the same run without the fault by more than
  {TIMES:g} times the scatter of the latter (over {SLOW} steps around). Median and quartiles over the hits in
  which the loss shows it; below zero the loss was first. Without the other run beside it, one sees less.
- In the twin: runs without the fault, otherwise the same, in which it came as well.

{_table(FINDINGS, map(_row, found))}

## By fault

{_table(FAULTS, map(_planted, data["planted"]))}

Step found: median and quartiles over the hits. Alarms of other findings, in how many of the runs: a fault
may well have more than one name.

## By healthy run

A run counts as healthy if it reaches what is said here (loss: mean training loss of its last 20 steps);
those that do not are listed and not counted.

{_table(RUNS, map(_healthy, data["healthy"]))}
"""


def _extent(data: dict[str, Any]) -> str:
    """How many runs there were, and of how many kinds."""
    planted, healthy = data["planted"], data["healthy"]
    runs = sum(len(row["found"]) for row in planted), sum(row["runs"] for row in healthy)
    kinds = [
        f"{len({row[key].split(',')[0] for row in (*planted, *healthy)})} {words}"
        for key, words in (("task", "tasks"), ("model", "kinds of model"), ("optimizer", "optimizers"))
    ]
    return (
        f"{runs[0]} runs with a planted fault ({len(planted)} faults), each beside its twin without, and "
        f"{runs[1]} healthy runs ({len(healthy)} kinds), over {kinds[0]}, {kinds[1]} and {kinds[2]}."
    )


def _target(found: Sequence[Rates], data: dict[str, Any]) -> str:
    planted = [one for one in found if one.runs]
    runs, hits = sum(one.runs for one in planted), sum(one.hits for one in planted)
    healthy = sum(row["runs"] for row in data["healthy"])
    alarmed = sum(row["alarmed"] for row in data["healthy"])
    alarms = sum(one.alarms for one in found)
    missed = [f"{one.finding} ({'; '.join(one.misses_target)})" for one in found if one.misses_target]
    lines = [
        f"Target, for each finding: named in at least {HITS:.0%} of the runs with the fault, a false alarm "
        f"in at most {ALARMS:.0%} of the healthy runs.",
        f"**{'Not met by: ' + ', '.join(missed) if missed else 'Every finding meets it'}.**",
        f"All {len(planted)} findings together: {_share(hits, runs)} of the planted faults were named, in "
        f"{_share(alarmed, healthy)} of the healthy runs there was an alarm, {alarms} alarms in all"
        + (f" ({alarms / healthy:.2f} a run)." if healthy else "."),
    ]
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    if not total:
        return "-"
    low, high = interval(count, total)
    return f"{count}/{total} ({100 * low:.0f} to {100 * high:.0f} %)"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, middle, high = quartiles(values)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _row(one: Rates) -> list[str]:
    return [
        one.finding,
        _share(one.hits, one.runs),
        _share(one.alarms, one.healthy),
        _of(one.infos, one.healthy),
        _spread(one.leads),
        _of(one.hidden, one.hits),
        _of(one.twins, one.runs),
    ]


def _of(count: int, total: int) -> str:
    return f"{count}/{total}" if total else "-"


def _planted(row: dict[str, Any]) -> list[str]:
    pairs = list(zip(row["found"], row["shown"], strict=True))
    hits = [pair for pair in pairs if pair[0] is not None]
    return [
        row["finding"],
        row["fault"],
        _run(row),
        _of(len(hits), len(pairs)),
        str(row["onset"]) if row["onset"] else "start",
        _spread([found for found, _ in hits]),
        _spread([shown - found for found, shown in hits if shown is not None]),
        _of(sum(shown is None for _, shown in hits), len(hits)),
        _counts(row["also"]),
    ]


def _healthy(row: dict[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, row["untrained"]))
    return [
        _run(row),
        str(row["steps"]),
        row["bar"],
        str(row["runs"]),
        f"{len(row['untrained'])}: seeds {seeds}" if seeds else "0",
        _of(row["alarmed"], row["runs"]),
        _counts(row["alarms"]),
        _counts(row["infos"]),
    ]


def _run(row: dict[str, Any]) -> str:
    return f"{row['task']}, {row['model']}, {row['optimizer']}"


def _counts(named: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in named.items()) or "-"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
