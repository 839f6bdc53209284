"""Beginning a record: a run in the store, new or an earlier one, and in the trackers, and its thread."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from thalweg.watch._store_file import in_words
from thalweg.watch.delivery import Delivery
from thalweg.watch.readings import Finding, Reading, labelled
from thalweg.watch.recorder import Recorder
from thalweg.watch.rule import Rule, all_rules
from thalweg.watch.sink import Sink
from thalweg.watch.store import RunInfo, RunStore
from thalweg.watch.watched import Watched

__all__ = ["begin_recording", "earlier_run"]

# Rules that judge a resumed run have seen so many of its steps.
REMEMBERED = 2000


def earlier_run(store: RunStore, resume: bool | int | str, name: str | None) -> RunInfo | None:
    """The run that is to go on: by id or name, or, for True, the latest called ``name`` if there is one.

    Raises:
        ValueError: there is no such run, ``resume`` is True and there is no name, or the file is damaged.
    """
    if resume is True and not name:
        raise ValueError("resume=True needs the name of the run: watch(..., name=..., resume=True)")
    wanted = name if resume is True else resume
    with in_words(store.path):
        known = store.runs()
    key = "id" if isinstance(wanted, int) else "name"
    found = [one for one in known if getattr(one, key) == wanted]
    if not found and resume is not True:
        there = ", ".join(f"{one.id} {one.name!r}" for one in known[-5:]) or "none"
        raise ValueError(
            f"resume must be the id or name of a run in {str(store.path)!r}, got {resume!r}; "
            f"the latest there: {there}"
        )
    return found[-1] if found else None


def begin_recording(
    optimizers: Sequence[Watched],
    about: Mapping[str, Any],
    *,
    name: str,
    store: RunStore | None,
    sinks: Sequence[Sink],
    on_finding: Callable[[Finding], None] | None,
    earlier: RunInfo | None,
    start: int,
) -> Recorder:
    """A recorder at work; a sink that cannot begin is reported and left out."""
    begun: list[tuple[str, Sink]] = []
    failures: list[tuple[str, Exception]] = []
    ids: dict[str, str] = dict(earlier.about.get("sinks", {})) if earlier else {}
    for sink in sinks:
        kind = type(sink).__name__
        label = kind if kind not in dict(begun) else f"{kind} {len(begun) + 1}"
        try:
            found = sink.begin(name, about, start=start, earlier=ids.get(label))
        except Exception as error:
            failures.append((label, error))
            continue
        begun.append((label, sink))
        if found is not None:
            ids[label] = found
    known = {**about, **({"sinks": ids} if ids else {})}
    run, before = 0, list[Finding]()
    if store is not None and earlier is not None:
        run = earlier.id
        store.resume(run, start, **known)
        with in_words(store.path):
            before = store.findings(run, damaged=_warned)
    elif store is not None:
        run = store.begin(name, known)
    rules = {one.label: all_rules(one.about()) for one in optimizers}
    recorder = Recorder(
        rules,
        store,
        run,
        on_finding,
        titles={one.label: one.title for one in optimizers},
        past=lambda: _past(store, run, rules, start) if store and earlier else iter(()),
        findings=before,
    )
    recorder.step = start

    def failed(label: str, error: Exception) -> None:
        said = recorder.switch_off("sink", [label], error)
        try:
            warnings.warn(said, stacklevel=2)
        except Warning:
            # Warnings as errors are for the thread of the one who asked for that, not for a sink's.
            return

    recorder.sinks = [Delivery(label, sink, failed) for label, sink in begun]
    for label, why in failures:
        failed(label, why)
    return recorder


def _warned(why: str) -> None:
    warnings.warn(f"thalweg: {why}", stacklevel=2)


def _past(
    store: RunStore, run: int, rules: Mapping[str, Sequence[Rule]], start: int
) -> Iterator[tuple[str, Reading]]:
    """The latest readings of a run that its rules would have seen, by step."""
    found = [
        (label, Reading(one.step, name, one.value, one.layers, one.extra))
        for label, judges in rules.items()
        # Within a step a rule has named what it reads in the order in which it wants to see it.
        for name in dict.fromkeys(name for rule in judges for name in rule.reads)
        for one in store.readings(run, labelled(name, label), after=max(0, start - REMEMBERED))
    ]
    yield from sorted(found, key=lambda pair: pair[1].step)
