"""The machine code of a compiled kernel, so that one loop in C can call it for many tensors.

Inductor turns a pass into one C function behind a Python wrapper that allocates, checks and forwards. A
pass that works in place needs none of that: its function takes pointers to the pass's own arguments, and the
length. Which pointer goes where is learnt by watching the wrapper make its call; where that finds anything
else than one call with the pass's own arguments, there is no such code and the wrapper goes on being used.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MOST_ARGUMENTS = 40


@dataclass(frozen=True)
class MachineCode:
    """A C function and where each of its arguments comes from.

    Attributes:
        address: of the function.
        wiring: for each argument the index among the pass's arguments; None stands for the length.
    """

    address: int
    wiring: tuple[int | None, ...]


def machine_code(library: Any, wiring: Sequence[int | None]) -> MachineCode:
    """The function in a shared library that Inductor has made."""
    address = ctypes.cast(ctypes.CDLL(library).kernel, ctypes.c_void_p).value
    assert address is not None
    return MachineCode(address, tuple(wiring))


@contextlib.contextmanager
def graphs() -> Iterator[list[Any]]:
    """The graphs that Inductor gets ready inside of the block, compiled or found kept."""
    from torch._inductor.output_code import CompiledFxGraph

    made: list[Any] = []
    finish = CompiledFxGraph.post_compile

    def noting(self: Any, *given: Any, **options: Any) -> Any:
        made.append(self)
        return finish(self, *given, **options)

    CompiledFxGraph.post_compile = noting  # type: ignore[method-assign]
    try:
        yield made
    finally:
        CompiledFxGraph.post_compile = finish  # type: ignore[method-assign]


class Watch:
    """Notes the calls that a compiled graph makes of its C functions while ``watching``."""

    def __init__(self, graph: Any):
        self.functions = _globals(getattr(graph, "current_callable", None))
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        found = {name: one for name, one in self.functions.items() if _library(one) is not None}
        for name, function in found.items():
            self.functions[name] = self._noting(function)
        try:
            yield
        finally:
            self.functions.update(found)

    def _noting(self, function: Any) -> Any:
        def noting(*arguments: Any) -> Any:
            self.calls.append((function, arguments))
            return function(*arguments)

        return noting

    def code(self, arguments: Sequence[Any], length: int) -> MachineCode | None:
        """What was called, if that was one function with nothing but ``arguments`` and their ``length``."""
        if len(self.calls) != 1 or len(self.calls[0][1]) > MOST_ARGUMENTS:
            return None
        function, given = self.calls[0]
        wiring: list[int | None] = []
        for value in given:
            if isinstance(value, Tensor):
                index = next((i for i, one in enumerate(arguments) if one is value), None)
                if index is None:
                    return None
                wiring.append(index)
            elif value == length:
                wiring.append(None)
            else:
                return None
        if wiring.count(None) != 1 or any(
            one.device.type != "cpu" for one in given if isinstance(one, Tensor)
        ):
            return None
        return machine_code(_library(function), wiring)

    @property
    def files(self) -> dict[str, str] | None:
        """The files of the wrapper and of the library, if one function was called that is in one."""
        library = _library(self.calls[0][0]) if len(self.calls) == 1 else None
        wrapper = self.functions.get("__file__")
        if library is None or wrapper is None:
            return None
        return {"wrapper": str(wrapper), "library": library}


def _globals(function: Any) -> dict[str, Any]:
    """The module in which a graph's wrapper looks up its C functions."""
    function = getattr(function, "__func__", function)
    return function.__globals__ if isinstance(function, types.FunctionType) else {}


def _library(function: Any) -> str | None:
    """The shared library of a C function that Inductor has bound, None for anything else."""
    if not isinstance(function, types.BuiltinFunctionType) or function.__name__ != "kernel":
        return None
    return getattr(function.__self__, "__file__", None)
