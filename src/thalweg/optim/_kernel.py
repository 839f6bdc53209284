"""One pass as a function that works in place on flat tensors, eager or compiled by Inductor.

Compiled, a pass is a single loop over memory for tensors of any length: one kernel a chain, however many
tensors there are, and scalars come in as tensors, so that no schedule ever recompiles it.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from thalweg.optim._direct import PASS, Direct, P
from thalweg.optim._kept import name_of
from thalweg.optim._machine_code import MachineCode
from thalweg.optim._pass import Pass
from thalweg.optim._rounding import write
from thalweg.optim.transform import PARTS, Transform, at_hand

Kernel = Callable[..., tuple[Tensor | None, Tensor | None]]
_compiled: dict[Any, Compiled] = {}
_broken: list[str] = []
_count = itertools.count()


# Elements that an eager pass takes at a time: few enough to stay in cache between its operations.
CHUNK = 1 << 18


def eager(part: Pass, rounding: str) -> Kernel:
    """The pass in plain torch, a chunk at a time: updates ``p`` and ``slots`` in place.

    Takes packed scalars, seed and offset of the noise, sums, weights, update, gradient, Kahan's rest and
    slots; returns the update and the sums for the next pass.
    """
    whole = _once(replace(part, adds_up=False, gates=False), rounding)

    def kernel(packed, places, sums, p, u, gradient, lost, *slots):
        if part.adds_up:
            sums = torch.stack(part.with_totals(sums, packed.unbind()))
        width = 1 if p.dim() == 1 else p.shape[1]
        size = max(1, CHUNK // max(1, width))
        noisy = rounding == "stochastic"
        if len(p) <= size and not part.gates:
            return whole(packed, places, sums, p, u, gradient, lost, *slots)
        out = u if part.first == part.last and not part.writes else None
        measured: Any = None
        for start in range(0, len(p), size):
            cut = [
                None if one is None else one[start : start + size] for one in (p, u, gradient, lost, *slots)
            ]
            by_row = sums[:, start : start + size] if sums.dim() == 3 else sums
            shifted = torch.stack([places[0], places[1] + start * width]) if noisy else places
            update, added = whole(packed, shifted, by_row, *cut)
            if update is not None and out is not u:
                out = torch.empty(p.shape, dtype=update.dtype, device=p.device) if out is None else out
                out[start : start + size] = update
            if added is not None:
                per_row = added.dim() == 3
                measured = (
                    added
                    if measured is None
                    else torch.cat([measured, added], 1)
                    if per_row
                    else measured + added
                )
        if part.gates:
            return None, part.verdict(measured, packed.unbind())
        return out, measured

    return kernel


def _once(part: Pass, rounding: str) -> Kernel:
    def kernel(packed, places, sums, p, u, gradient, lost, *slots):
        wide = p.to(torch.float32) if p.dtype in (torch.bfloat16, torch.float16) else p
        stored = [slot.to(wide.dtype) for slot in slots]
        scalars = packed.unbind()
        own = None if gradient is None else gradient.to(wide.dtype)
        received = part.with_totals(sums, scalars) if part.adds_up else sums.unbind()
        spare = not part.rehearses and all(one is slot for one, slot in zip(stored, slots, strict=True))
        u, values, measured = part.run(scalars, received, u.to(wide.dtype), wide, own, stored, spare)
        if part.gates:
            assert measured is not None
            return None, part.verdict(measured, scalars)
        if part.rehearses:
            return None, measured
        for slot, old, value in zip(slots, stored, values, strict=True):
            if value is not old:
                slot.copy_(value)
        if not part.writes:
            return u, measured
        if wide is p and (rate := at_hand(scalars[0])) is not None:
            p.sub_(u, alpha=rate)  # the same in one operation
            return None, None
        written, left = write(wide - scalars[0] * u, p, rounding, lost, *places.unbind())
        p.copy_(written)
        if left is not None:
            lost.copy_(left)
        return None, None

    return kernel


def shaped(part: Pass, rounding: str, compiles: bool = False) -> Kernel:
    """A pass over a whole tensor in its own shape; its scalars are plain floats, its state of any kind.

    ``known`` is what else its links may ask of ``k``: ``index`` and ``count`` of the parameter among those
    that go the same way, and whether ``u`` is ``owned``, so that they may write to it; beside these there is
    ``compiles``: whether they may compile loops of their own (see ``_loop``).
    """

    def kernel(scalars, known, sums, p, u, gradient, lost, *slots):
        half = p.dtype in (torch.bfloat16, torch.float16)
        wide, u = (p.float(), u.float()) if half else (p, u)
        own = gradient.float() if half and gradient is not None else gradient
        u, values, _ = part.run(scalars, (), u, wide, own, slots, compiles=compiles, **known)
        for slot, value in zip(slots, values, strict=True):
            if value.shape != slot.shape:
                slot.set_(value.to(slot.dtype))  # it may grow and shrink, but stays the same object
            elif value is not slot:
                slot.copy_(value)
        return u, None

    return kernel


def compiled(part: Pass, rounding: str) -> Compiled:
    """The same pass through torch.compile, shared by every optimizer whose chain has the same structure."""
    key = (structure(part), rounding)
    if key not in _compiled:
        names = ", ".join(one.label for one in part.links[part.first : part.last]) or "sums"
        _compiled[key] = Compiled(_once(part, rounding), eager(part, rounding), names, key)
    return _compiled[key]


class Compiled:
    """What does ``once`` for tensors of any length, compiled once for every kind of arguments.

    ``plain`` gives the same without a compiler; ``names`` says what it is, ``key`` what it depends on,
    ``options`` how Inductor is to compile it.
    """

    def __init__(self, once: Kernel, plain: Kernel, names: str, key: Any, options: dict[str, Any] = PASS):
        self.once, self.plain, self.names, self.key, self.options = once, plain, names, key, options
        self.made: dict[Any, Announced] = {}

    def __call__(self, *arguments: Any) -> tuple[Tensor | None, Tensor | None]:
        # Dynamo treats a size of 1 as such for ever: it gets its own code.
        return self.of(arguments, tuple(size == 1 for size in arguments[P].shape))(*arguments)

    def general(self, arguments: Any) -> Announced | None:
        """The kernel for flat tensors of any length, unless these have a single element."""
        return None if len(arguments[P]) == 1 else self.of(arguments, (False,))

    def of(self, arguments: Any, kinds: tuple) -> Announced:
        kinds += _kinds(arguments)
        if kinds not in self.made:
            name = name_of(self.key, kinds, sorted(self.options.items()))
            direct = Direct(_copy(self.once), name, self.options)
            self.made[kinds] = Announced(direct, self.plain, self.names)
        return self.made[kinds]


def _kinds(arguments: Any) -> tuple:
    same = arguments[P + 1] is arguments[P + 2]
    # How many scalars there are depends on links behind and before these ones, and is fixed once compiled.
    return (same, len(arguments[0]), *(None if one is None else (one.dtype, one.device) for one in arguments))


def _copy(kernel: Kernel) -> Kernel:
    """The kernel with a code object of its own, by which Dynamo counts recompiles and sets their limit."""
    assert isinstance(kernel, FunctionType)
    code = kernel.__code__.replace(co_name=f"kernel_{next(_count)}")
    return FunctionType(code, kernel.__globals__, kernel.__name__, kernel.__defaults__, kernel.__closure__)


def structure(part: Pass) -> tuple:
    """What a compiled pass depends on: everything but the values of hyper-parameters."""
    links = []
    for one in part.used:
        t = one.transform
        links.append((*made(t), tuple(one.slots.items()), one.owned, tuple(t.hyper)))
    place = tuple(tuple(field) for field in part.layout.fields[part.first : part.last + 1])
    cut = (part.first, part.last, part.measures, part.view, part.writes, part.gradient, part.rehearses)
    return (cut, part.adds_up, part.gates, tuple(links), place)


def made(t: Transform) -> tuple:
    """What the code of a transform depends on: the part that made it and its fixed arguments."""
    fixed = {name: value for name, value in t.arguments.items() if name not in t.hyper}
    return PARTS.get(t.name) or (t.update, t.measure), repr(sorted(fixed.items()))


class Announced:
    """Says how long the first call took to compile; without a working compiler, runs eagerly and says so."""

    def __init__(self, fast: Direct, plain: Kernel, names: str):
        self.fast, self.plain, self.names = fast, plain, names
        self.run: Kernel | None = fast if fast.ready else None

    @property
    def code(self) -> MachineCode | None:
        """The machine code, if there is any, once the first call has been made."""
        return self.fast.code

    def __call__(self, *arguments: Any) -> tuple[Tensor | None, Tensor | None]:
        if self.run is not None:
            return self.run(*arguments)
        start = time.perf_counter()
        try:
            result = self.fast(*arguments)
        except Exception as error:
            if type(error).__module__.split(".")[0] != "torch" or "out of memory" in str(error):
                raise
            if not _broken:
                _broken.append(str(error))
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                print(
                    f"thalweg: cannot compile optimizer steps here, running eagerly ({reason})",
                    file=sys.stderr,
                )
            self.run = self.plain
            return self.plain(*arguments)
        self.run = self.fast
        seconds = time.perf_counter() - start
        print(
            f"thalweg: compiled [{self.names}] in {seconds:.1f} s "
            "(kept for later runs; compile=False opts out)",
            file=sys.stderr,
        )
        return result
