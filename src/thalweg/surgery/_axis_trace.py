"""What is known about the axes of all tensors of one run, while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from thalweg.surgery._axes import Terms, fix, fresh, tie

Layout = list[Terms]
Rule = Callable[..., None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what the operations ``names`` say: called with the trace, the result and the arguments."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Sight:
    """A tensor of the run: operand ``operand`` of operation ``call``, or its result for None."""

    call: int
    operand: int | None
    layout: Layout


class Trace:
    """Layouts of all tensors that a model makes: the atoms of each axis.

    Attributes:
        params: name of each weight, and of each running statistic, to its layout.
        seen: layouts of everything that was made on the way, each once; ``read``: of what an operation used.
        reads: activations that a weight reads; ``writes``: what it makes of them.
        modules: names of the modules that are running, the innermost last.
    """

    def __init__(self, named: Mapping[str, Tensor]):
        self.layouts: dict[int, Layout] = {}
        self.kept: list[Tensor] = []  # an id belongs to a tensor only while it lives
        self.params = {name: [fresh(n) for n in tensor.shape] for name, tensor in named.items()}
        self.seen: dict[int, Layout] = {}
        self.read: dict[int, Layout] = {}
        self.of_weights: set[int] = set()
        self.reads: list[Sight] = []
        self.writes: list[Sight] = []
        self.modules: list[str] = []
        self.calls = 0
        self.op = ""
        for name, tensor in named.items():
            self.place(tensor, self.params[name])
            self.of_weights.add(id(tensor))

    @property
    def why(self) -> str:
        """Where the run stands, as a reason to fix units."""
        return f"{self.op}{self.where}"

    @property
    def where(self) -> str:
        return f" in module {self.modules[-1]!r}" if self.modules and self.modules[-1] else ""

    def layout(self, tensor: Tensor) -> Layout:
        """The axes of ``tensor``; a constant that the model brings along keeps its order."""
        if id(tensor) not in self.layouts:
            self.place(tensor, [fresh(n, f"a constant read by {self.why}") for n in tensor.shape])
        return self.layouts[id(tensor)]

    def place(self, tensor: Tensor, layout: Layout, source: Tensor | None = None) -> None:
        """Note the axes of a new tensor, which may be the weight ``source`` in another shape."""
        self.layouts[id(tensor)] = layout
        self.kept.append(tensor)
        self.seen[id(layout)] = layout
        if source is not None and id(source) in self.of_weights:
            self.of_weights.add(id(tensor))

    def known(self, tensor: Tensor) -> bool:
        return id(tensor) in self.layouts

    def tie(self, left: Terms, right: Terms) -> None:
        tie(left, right, self.why)

    def fix(self, *axes: Terms) -> None:
        for axis in axes:
            fix(axis, self.why)

    def ordered(self, size: int) -> Terms:
        """An axis that keeps its order because of the present operation."""
        return fresh(size, self.why)

    def unknown(self, arguments: Any, made: Any) -> None:
        """An operation that is not understood: whatever it reads and makes keeps its order."""
        for tensor in tree_leaves(arguments):
            if isinstance(tensor, Tensor):
                self.fix(*self.layout(tensor))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and not self.known(tensor):
                self.place(tensor, [self.ordered(n) for n in tensor.shape])
