"""Which units along the axes of tensors are the same units: atoms, tied together while a model runs.

An axis is a product of atoms, the first one moving slowest: behind a flattening, (channels, height, width).
An atom may turn out to be a product itself (width = heads x units of a head), a row of segments (what a
concatenation joins), or to be called one way under each index of another atom: units that stand behind
queries, keys and values in turn need not be in one order (``members``). What must keep its order is fixed,
with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

Terms = list["Atom"]


class Atom:
    """``size`` units along an axis; after ties, the representative is ``find(atom)``."""

    __slots__ = ("factors", "link", "members", "segments", "size", "split", "why")

    def __init__(self, size: int, why: str | None = None, split: bool = False):
        self.size, self.why, self.split = size, why, split
        self.link: Atom | None = None
        self.factors: Terms | None = None
        self.segments: Terms | None = None
        self.members: dict[tuple[Atom, int], Atom] = {}


def fresh(size: int, why: str | None = None) -> Terms:
    """An axis of its own; none for a single unit."""
    return [Atom(size, why)] if size > 1 else []


def find(atom: Atom) -> Atom:
    while atom.link is not None:
        if atom.link.link is not None:
            atom.link = atom.link.link
        atom = atom.link
    return atom


def leaves(terms: Iterable[Atom]) -> Terms:
    """The same axis with every product written out."""
    found: Terms = []
    for atom in map(find, terms):
        found += leaves(atom.factors) if atom.factors is not None else [atom]
    return found


def size(terms: Iterable[Atom]) -> int:
    return prod(atom.size for atom in terms)


def fix(terms: Iterable[Atom], why: str) -> None:
    """Let these units keep their order."""
    for atom in map(find, terms):
        if atom.why is None:
            atom.why = why
            fix([*(atom.factors or ()), *(atom.segments or ()), *atom.members.values()], why)


def tie(left: Terms, right: Terms, why: str) -> None:
    """The units of two axes of one size are the same; ``why`` is the reason if they cannot be."""
    left, right = leaves(left), leaves(right)
    while left and right:
        if left[0].size < right[0].size:
            left, right = right, left
        big, small = left[0], right[0]
        if big.size == small.size:
            _merge(big, small, why)
            left, right = left[1:], right[1:]
        elif big.size % small.size == 0:
            left = leaves(divide(big, small.size, why)) + left[1:]
        else:
            fix(left + right, why)
            return
    fix(left + right, why)


def divide(atom: Atom, major: int, why: str) -> Terms:
    """``atom``, a leaf, as a product whose first factor has ``major`` units."""
    atom = find(atom)
    minor = atom.size // major
    if atom.segments is not None:
        fix([atom], why)
    if atom.why is not None:
        return [Atom(major, atom.why), Atom(minor, atom.why)]
    atom.factors = [Atom(major, split=True), Atom(minor, split=True)]
    for key, member in atom.members.items():
        for factor in atom.factors:
            factor.members[key] = Atom(factor.size, split=True)
        tie([member], [factor.members[key] for factor in atom.factors], why)
    return atom.factors


def _merge(one: Atom, other: Atom, why: str) -> None:
    one, other = find(one), find(other)
    if one is other:
        return
    reason = one.why or other.why
    if reason is not None:
        fix([one, other], reason)
        if one.segments is None and other.segments is None:
            other.link, one.split = one, one.split or other.split
        return
    if one.segments is not None and other.segments is not None:
        _tie_segments(one, other, why)
        if one.why is not None or other.why is not None:
            return
    if one.segments is None:
        one, other = other, one
    # Now ``one`` has the segments, if there are any; a row has one order under every index.
    shared = [*one.members.values(), *other.members.values()] if one.segments is not None else []
    if shared:
        one.members, other.members = {}, {}
    other.link = one
    one.split = one.split or other.split
    for (index, place), member in other.members.items():
        own = _member(one, index, place)
        if own is None:
            one.members[index, place] = member
        else:
            tie([own], [member], why)
    for member in shared:
        tie([one], [member], why)


def _tie_segments(one: Atom, other: Atom, why: str) -> None:
    cuts = sorted({*_ends(one), *_ends(other)})
    sizes = [end - start for start, end in pairwise([0, *cuts])]
    for left, right in zip(segment(one, sizes, why), segment(other, sizes, why), strict=True):
        tie([left], [right], why)


def _ends(atom: Atom) -> list[int]:
    ends, end = [], 0
    for part in atom.segments or ():
        end += part.size
        ends.append(end)
    return ends


def segment(atom: Atom, sizes: Sequence[int], why: str) -> Terms:
    """``atom``, a leaf, as a row of segments."""
    atom = find(atom)
    if atom.why is not None:
        return [Atom(count, atom.why) for count in sizes]
    if atom.segments is None:
        atom.segments = [Atom(count, split=True) for count in sizes]
        for key, member in list(atom.members.items()):
            for own, other in zip(atom.segments, segment(member, sizes, why), strict=True):
                own.members[key] = other
        return list(atom.segments)
    finer: Terms = []
    bounds = [0]
    for count in sizes:
        bounds.append(bounds[-1] + count)
    start = 0
    for part in atom.segments:
        inner = [start, *(bound for bound in bounds if start < bound < start + part.size), start + part.size]
        counts = [b - a for a, b in pairwise(inner)]
        finer += [part] if len(counts) == 1 else [_whole(terms) for terms in cut([part], counts, why)]
        start += part.size
    if atom.why is not None:
        return [Atom(count, atom.why) for count in sizes]
    atom.segments = finer
    rows: Terms = []
    rest = list(finer)
    for count in sizes:
        row = [rest.pop(0)]
        while sum(part.size for part in row) < count:
            row.append(rest.pop(0))
        rows.append(row[0] if len(row) == 1 else _row(row))
    return rows


def _row(parts: Terms) -> Atom:
    whole = Atom(sum(part.size for part in parts))
    whole.segments = parts
    return whole


def _whole(terms: Terms) -> Atom:
    """One atom for a whole axis."""
    if len(terms) == 1:
        return terms[0]
    whole = Atom(size(terms))
    whole.factors = terms
    return whole


def cut(terms: Terms, sizes: Sequence[int], why: str) -> list[Terms]:
    """An axis cut into runs of ``sizes`` neighbours."""
    terms = leaves(terms)
    rest = terms[1:]
    block = size(rest)
    if not terms or any(count == 0 or count % block for count in sizes):
        fix(terms, why)
        return [fresh(count, why) for count in sizes]
    parts = segment(terms[0], [count // block for count in sizes], why)
    return [[part, *rest] if part.size > 1 else list(rest) for part in parts]


def joined(rows: Sequence[Terms], sizes: Sequence[int]) -> Terms:
    """The axis that a concatenation makes of the axes ``rows``."""
    parts = [
        _whole(row) if row else Atom(1, "a single unit") for row, n in zip(rows, sizes, strict=True) if n
    ]
    return [parts[0]] if len(parts) == 1 else [_row(parts)]


def _member(atom: Atom, index: Atom, place: int) -> Atom | None:
    index = find(index)
    for (other, at), found in atom.members.items():
        if at == place and find(other) is index:
            return find(found)
    return None


def under(terms: Terms, index: Atom, place: int, new: bool = True) -> Terms:
    """The units of an axis as they are called under the index ``place`` of another axis.

    Without ``new``, units that never got a name of their own there keep theirs.
    """
    found: Terms = []
    for atom in leaves(terms):
        if atom.why is not None or not find(index).split:
            found.append(atom)
        elif atom.segments is not None:
            found.append(_row([_whole(under([part], index, place, new)) for part in atom.segments]))
        else:
            own = _member(atom, index, place)
            if own is None and new:
                own = atom.members[find(index), place] = Atom(atom.size, split=True)
            found.append(own or atom)
    return found
