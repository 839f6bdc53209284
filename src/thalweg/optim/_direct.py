"""Calling a compiled kernel without asking Dynamo each time whether it may.

Dynamo checks its guards and rebuilds the arguments at every call, which takes longer than a small tensor's
arithmetic. What the guards would check is known here beforehand: a kernel is only ever called with the kinds
of tensors for which it was compiled (see ``_kernel.compiled``). So the first call notes where the compiled
graph's inputs come from and where its outputs go, and later calls pass them straight on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.optim import _kept
from thalweg.optim._header import beside
from thalweg.optim._machine_code import MachineCode, Watch, graphs, machine_code

P = 3  # where the parameter stands among a kernel's arguments; its sizes are the only ones
Kernel = Callable[..., tuple[Tensor | None, Tensor | None]]
OPTIONS = {
    # Kahan needs what rounding to 16 bits loses; Inductor would cancel the cast there and back.
    "emulate_precision_casts": True,
    # The processor says which vectors it has; to compile and load a program for each takes ten seconds.
    "cpp.vec_isa_ok": True,
}
# How many operations may be written out anew for each use, rather than stored once. A pass stores nothing,
# which would take memory and time; a loop of hundreds of operations would take too long to compile.
PASS = {**OPTIONS, "realize_opcount_threshold": 1000, "realize_reads_threshold": 1000}
LOOP = {**OPTIONS, "realize_opcount_threshold": 16}


class Direct:
    """A kernel compiled on its first call, for any length, or found where an earlier process has kept it.

    Attributes:
        code: its machine code, where it needs nothing but its arguments; known from the first call on.
        ready: whether that first call has been made, or is not needed.
    """

    def __init__(self, kernel: Kernel, name: str | None, options: dict[str, Any]):
        self.kernel, self.name, self.options = kernel, name, options
        self.graph: Callable[..., Any] | None = None
        self.inputs: list[tuple[int, int | None]] = []
        self.outputs: list[tuple[str, int] | None] = []
        self.code: MachineCode | None = None
        self.seen: tuple[Sequence[Any], Sequence[Any], Sequence[Any], Watch | None] = ((), (), (), None)
        self.guarded: Kernel | None = None
        self.ready = False
        if name is not None and (kept := _kept.read(name)) is not None:
            self._take(kept)

    def _compile(self, graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        # As Dynamo traced them, which is where sizes have symbols.
        traced = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
        with graphs() as made, beside():
            compiled: Any = torch._inductor.compile(graph, list(examples), options=self.options)

        def noted(*given: Any) -> Any:
            watch = Watch(made[-1] if made else None)
            with watch.watching():
                returned = compiled(*given)
            self.graph, self.seen = compiled, (traced, given, returned, watch)
            return returned

        return noted

    def _take(self, kept: Mapping[str, Any]) -> None:
        try:
            if kept["wiring"] is not None:
                self.code = machine_code(kept["library"], kept["wiring"])
            self.inputs, self.outputs, self.wrapper = (kept[one] for one in ("inputs", "outputs", "wrapper"))
        except (KeyError, OSError, AttributeError):
            return  # a record that cannot be used is written anew
        self.ready = True

    def __call__(self, *arguments: Any) -> tuple[Tensor | None, Tensor | None]:
        if not self.ready:
            if self.guarded is None:
                backend = self._compile
                self.guarded = torch.compile(self.kernel, dynamic=True, fullgraph=True, backend=backend)
            # Numbers that a kernel does not get as tensors are constants of its code; sizes that happen to be
            # equal may differ in the next call.
            with (
                torch._dynamo.config.patch(specialize_int=True, specialize_float=True),
                torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
            ):
                result = self.guarded(*arguments)
            self._note(arguments, result)
            return result
        if self.graph is None:
            call = _kept.wrapper(self.wrapper, self.options)
            self.graph = lambda *given: call(list(given))
        given_in = [arguments[at] if dim is None else arguments[at].shape[dim] for at, dim in self.inputs]
        returned = self.graph(*given_in)
        given = {"in": arguments, "out": returned}
        first, second = (None if one is None else given[one[0]][one[1]] for one in self.outputs)
        return first, second

    def _note(self, arguments: Sequence[Any], result: Sequence[Any]) -> None:
        """Find every input of the graph among the arguments and every output among what it returned."""
        traced, given, returned, watch = self.seen
        inputs = _where(traced, given, arguments)
        outputs = [_place(one, arguments, returned) for one in result]
        if None not in inputs and "lost" not in outputs:
            self.inputs, self.outputs, self.ready = inputs, outputs, True  # type: ignore[assignment]
            if watch is not None and arguments[P].dim() == 1:
                self.code = watch.code(arguments, len(arguments[P]))
            if watch is not None and watch.files is not None and self.name is not None:
                wiring = None if self.code is None else self.code.wiring
                wired = {"inputs": inputs, "outputs": outputs, "wiring": wiring}
                _kept.write(self.name, {**wired, **watch.files})
        self.seen = ((), (), (), None)


def _where(traced: Sequence[Any], given: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """For each input of a graph which argument it is, and which of its sizes if it is one."""
    found: list[Any] = []
    for value in given:
        found.append(next(((i, None) for i, one in enumerate(arguments) if one is value), None))
    sizes: dict[Any, tuple[int, int]] = {}
    for place, example in zip(found, traced, strict=True):
        if place is not None and isinstance(example, Tensor):
            for dim, size in enumerate(example.shape):
                if isinstance(size, torch.SymInt):
                    sizes.setdefault(size.node.expr, (place[0], dim))
    for index, example in enumerate(traced):
        if isinstance(example, torch.SymInt):
            found[index] = sizes.get(example.node.expr)
    return found


def _place(value: Any, arguments: Sequence[Any], returned: Sequence[Any]) -> Any:
    """Where a result comes from: None, an argument, an output of the graph; or it is lost."""
    if value is None:
        return None
    for kind, among in (("in", arguments), ("out", returned)):
        for index, one in enumerate(among):
            if one is value:
                return kind, index
    return "lost"
