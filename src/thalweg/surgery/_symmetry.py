"""From a trace to the permutations that a model allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from thalweg.surgery._axes import Atom, find, fix, leaves, size, tie, under
from thalweg.surgery._axis_trace import Layout, Trace
from thalweg.surgery._orders import Piece, Symmetry, Units

Axis = tuple[np.ndarray, list[Atom]]


def symmetry(trace: Trace, sights: bool = True) -> Symmetry:
    """The permutations that a traced model allows; ``sights`` also cuts the activations that weights read."""
    _settle(trace)
    _hold_unread(trace)
    named = [(name, layout, axes) for name, layout in trace.params.items() for axes in _blocks(layout)]
    passing = [axes for layout in _different(trace.seen.values()) for axes in _blocks(layout)]
    carried = dict.fromkeys(
        atom for _, _, axes in named for _, terms in axes for atom in terms if atom.why is None
    )
    labels = {atom: label for label, atom in enumerate(carried)}
    rows = [[labels.get(atom) for _, terms in axes for atom in terms] for _, _, axes in named]
    others = [[labels.get(atom) for _, terms in axes for atom in terms] for axes in passing]
    parents = _parents(len(labels), rows, others)
    pieces = [_piece(name, axes, _shape(layout), labels) for name, layout, axes in named]
    units = _units(labels, parents, pieces)
    fixed = {}
    for name, layout in trace.params.items():
        for d, axis in enumerate(layout):
            reasons = [atom.why for atom in leaves(axis)]
            if reasons and all(reasons):
                fixed[f"{name}[{d}]"] = str(reasons[0])
    seen = [
        tuple(
            (sight.call, sight.operand, _piece("", axes, _shape(sight.layout), labels))
            for sight in found
            for axes in _blocks(sight.layout)
        )
        for found in ((trace.reads, trace.writes) if sights else ((), ()))
    ]
    kept = tuple(piece for piece in pieces if any(label is not None for label in piece.labels))
    return Symmetry(units, kept, fixed, *seen)


def _shape(layout: Layout) -> list[int]:
    return [size(axis) for axis in layout]


def _different(layouts: Iterable[Layout]) -> list[Layout]:
    return list({tuple(tuple(map(id, leaves(axis))) for axis in one): one for one in layouts}.values())


def _settle(trace: Trace) -> None:
    """Units that also pass without the index under which they got several names have one order after all."""
    changed = True
    while changed:
        changed = False
        for layout in _different(trace.seen.values()):
            atoms = {atom for axis in layout for atom in _all(leaves(axis))}
            for atom in atoms:
                for (index, _), member in list(atom.members.items()):
                    if (
                        find(index) not in atoms
                        and find(member) is not find(atom)
                        and find(member).why is None
                    ):
                        tie([member], [atom], "units under an index that is not there")
                        changed = True


def _hold_unread(trace: Trace) -> None:
    """What the run did not read keeps its order, and so do units that a weight nobody read may carry as well.

    Such a weight (of a head for training alone, of another branch) may belong to any units that fit into
    one of its axes, flattened or not.
    """
    read = {atom for layout in trace.read.values() for axis in layout for atom in _all(leaves(axis))}
    units = {name: [[*_all(leaves(axis))] for axis in layout] for name, layout in trace.params.items()}
    unread = {
        name: trace.params[name]
        for name, axes in units.items()
        if any(axes) and not any(atom in read for axis in axes for atom in axis)
    }
    free = {
        atom
        for axes in units.values()
        for axis in axes
        for atom in axis
        if not atom.segments and not atom.why
    }
    for atom in free - read:
        fix([atom], "the inputs, which do not reach it")
    for name, layout in unread.items():
        for atom in free & read:
            if any(size(axis) > 1 and size(axis) % atom.size == 0 for axis in layout):
                fix([atom], f"{name!r}, which may carry the same units and is not reached by the inputs")


def _all(terms: list[Atom]) -> Iterator[Atom]:
    for atom in leaves(terms):
        yield atom
        yield from _all(atom.segments or [])


def _blocks(layout: Layout) -> Iterator[list[Axis]]:
    """A tensor cut until every axis is a product of atoms: indices along the axis, and the atoms."""
    axes = []
    for axis in layout:
        terms = leaves(axis)
        shape = [atom.size for atom in terms]
        axes.append((np.arange(prod(shape)).reshape(shape), terms))
    yield from _cut(axes)


def _cut(axes: list[Axis]) -> Iterator[list[Axis]]:
    atoms = [atom for _, terms in axes for atom in terms]
    indices = {
        find(index)
        for atom in atoms
        for (index, _), member in atom.members.items()
        if find(member) is not atom
    }
    for d, (grid, terms) in enumerate(axes):
        for at, atom in enumerate(terms):
            if atom in indices and atoms.count(atom) == 1:
                for place in range(atom.size):
                    rest = [*axes]
                    rest[d] = (grid.take(place, axis=at), terms[:at] + terms[at + 1 :])
                    yield from _cut([_under(*axis, atom, place) for axis in rest])
                return
            if atom.segments is not None:
                start = 0
                for part in atom.segments:
                    run = range(start, start + part.size)
                    start += part.size
                    taken, inner = grid.take(run, axis=at), leaves([part] if part.size > 1 else [])
                    shape = [*grid.shape[:at], *(a.size for a in inner), *grid.shape[at + 1 :]]
                    rest = [*axes]
                    rest[d] = (taken.reshape(shape), terms[:at] + inner + terms[at + 1 :])
                    yield from _cut(rest)
                return
    yield axes


def _under(grid: np.ndarray, terms: list[Atom], index: Atom, place: int) -> Axis:
    named = leaves(under(terms, index, place, new=False))
    return grid.reshape([atom.size for atom in named]), named


def _piece(name: str, axes: list[Axis], shape: list[int], labels: Mapping[Atom, int]) -> Piece:
    index: list[Tensor | slice | None] = []
    rows: list[tuple[int, int | None, int]] = []
    for axis, (grid, terms) in enumerate(axes):
        flat = np.ascontiguousarray(grid).reshape(-1)
        first = int(flat[0]) if len(flat) else 0
        if not (flat == np.arange(first, first + len(flat))).all():
            index.append(torch.from_numpy(flat))
        else:
            index.append(None if len(flat) == shape[axis] else slice(first, first + len(flat)))
        rows += [(atom.size, labels.get(atom), axis) for atom in terms] or [(1, None, axis)]
    sizes, found, places = zip(*rows, strict=True) if rows else ((), (), ())
    return Piece(name, tuple(index), sizes, found, places)


def _parents(count: int, rows: list[list[int | None]], others: list[list[int | None]]) -> list[int | None]:
    """Which units are never met without which others."""
    company: list[set[int] | None] = [None] * count
    twice: set[int] = set()
    for row in rows + others:
        here = {label for label in row if label is not None}
        twice |= {label for label in here if row.count(label) > 1}
        for label in here:
            known = company[label]
            company[label] = here - {label} if known is None else known & here
    above: list[set[int]] = [set() for _ in range(count)]
    for label, met in enumerate(company):
        for other in (met or set()) - twice:
            # Always together: the one that moves slower has the other under it.
            if label not in (company[other] or ()) or _before(other, label, rows):
                above[label].add(other)
    top = [{other for other in found if not above[other]} for found in above]
    return [min(found) if found else None for found in top]


def _before(one: int, other: int, rows: list[list[int | None]]) -> bool:
    row = next(row for row in rows if one in row and other in row)
    return row.index(one) < row.index(other)


def _units(labels: Mapping[Atom, int], parents: list[int | None], pieces: list[Piece]) -> tuple[Units, ...]:
    used: dict[str, int] = {}
    found = []
    for atom, label in labels.items():
        name = next(piece.name for piece in pieces if label in piece.labels).rpartition(".")[0]
        used[name] = used.get(name, 0) + 1
        unique = name if used[name] == 1 else f"{name}:{used[name]}"
        found.append(Units(unique, atom.size, parents[label]))
    return tuple(found)
