"""Activations that are function calls, ``F.relu(self.fc1(x))``, heard while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from thalweg.probe._sequences import with_weights
from thalweg.probe._wrapped import uncompiled

Function = Callable[[Tensor], Tensor]
Before = Callable[[str, Function, Tensor], None]
After = Callable[[str, Tensor], None]

_PLACES = (functional, torch, Tensor, torch._C._nn)


def _found(*names: str) -> frozenset[Any]:
    """The functions and methods of torch with one of these names, in place or not."""
    every = [getattr(place, name + end, None) for place in _PLACES for name in names for end in ("", "_")]
    return frozenset(one for one in every if one is not None)


_ACTIVATIONS = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 "
    "rrelu selu sigmoid silu softplus softshrink softsign tanh tanhshrink threshold"
)
ALONE = _found(*_ACTIVATIONS.split())  # acts on each entry alone
EVERY = ALONE | _found("glu")
_OF_FORMULAS = _found("tanh", "sigmoid")
_SIGMOIDS = _found("sigmoid") - _found("sigmoid_")
_PRODUCTS = _found("mul", "__mul__", "__rmul__", "__imul__")
_SCALINGS = _PRODUCTS | _found("div", "true_divide", "__truediv__")


@dataclass(frozen=True)
class _Call:
    """A sigmoid: ``result`` of ``value``, and the function for other values."""

    run: str
    again: Function
    value: Tensor
    result: Tensor

    def gates(self, args: tuple) -> bool:
        """Whether these are the value and its sigmoid, whose product is SiLU."""
        return len(args) == 2 and {id(one) for one in args} == {id(self.value), id(self.result)}


class _Listener(TorchFunctionMode):
    def __init__(self, heard: frozenset[Any], before: Before | None, after: After | None) -> None:
        super().__init__()
        self.heard, self.before, self.after = heard, before, after
        self.layer: str | None = None
        self.scaled: Any = None
        # What was called last, of which the next call may make another activation.
        self.pending: _Call | None = None
        self.inside = 0
        self.runs: dict[str, int] = {}

    def _listens(self, function: Any, value: Any) -> bool:
        if self.inside or function not in self.heard or not isinstance(value, Tensor) or value.dim() < 2:
            return False
        # A parameter kept positive is no unit; a tanh or sigmoid of a product is part of a hand-written GELU
        # or Swish, or a cap on logits.
        part = function in _OF_FORMULAS and value is self.scaled
        return not isinstance(value, nn.Parameter) and not part

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        last, value = self.pending, args[0] if args else kwargs.get("input")
        if last is not None and func in _PRODUCTS and last.gates(args):
            self.pending = None
            self._tell_before(last.run, functional.silu, last.value)
            result = func(*args, **kwargs)
            self._tell_after(last.run, result)
            return result
        self.flush()
        if not self._listens(func, value):
            result = func(*args, **kwargs)
            if func in _SCALINGS:
                self.scaled = result
            return result
        others = {key: entry for key, entry in kwargs.items() if key != "input"}
        name = self.layer if self.layer is not None else func.__name__
        count = self.runs[name] = self.runs.get(name, -1) + 1
        run = f"{name}[{count}]" if count else name
        again = lambda tensor: func(tensor, *args[1:], **others)  # noqa: E731
        if func in _SIGMOIDS:
            result = func(*args, **kwargs)
            self.pending = _Call(run, again, value, result)
            return result
        self._tell_before(run, again, value)
        result = func(*args, **kwargs)
        self._tell_after(run, result)
        return result

    def flush(self) -> None:
        """Tell of a call that nothing more was made of."""
        last, self.pending = self.pending, None
        if last is not None:
            self.inside += 1  # whoever is told may call such functions
            try:
                self._tell_before(last.run, last.again, last.value)
                self._tell_after(last.run, last.result)
            finally:
                self.inside -= 1

    def _tell_before(self, run: str, function: Function, value: Tensor) -> None:
        if self.before is not None:
            self.before(run, function, value.detach())

    def _tell_after(self, run: str, result: Tensor) -> None:
        if self.after is not None:
            self.after(run, result.detach())


@contextmanager
def functions_heard(
    model: nn.Module,
    *,
    before: Before | None = None,
    after: After | None = None,
    heard: frozenset[Any] = EVERY,
    modules: Iterable[nn.Module] = (),
) -> Iterator[dict[str, int]]:
    """Call ``before(run, function, input)`` and ``after(run, output)`` around each activation function.

    A run is called as the layer that ran last before it, the last module with a weight matrix or kernel of
    its own: ``F.relu(bn1(conv1(x)))`` is ``conv1``, a second activation after it ``conv1[1]``; as the
    function, if none ran yet. ``x * sigmoid(x)`` is SiLU. Modules made of such functions are heard too; what
    is computed in C++ (a recurrent cell) or by another hand-written formula is not, nor what is called within
    one of ``modules``.

    Yields:
        A dictionary that holds the runs' names once the model has run.
    """
    listener = _Listener(heard, before, after)

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            listener.layer = name

        return hook

    def flush(module: nn.Module, inputs: Any) -> None:
        listener.flush()

    def enter(module: nn.Module, inputs: Any) -> None:
        listener.inside += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        listener.inside -= 1

    makers = with_weights(model)
    handles = [module.register_forward_hook(note(name)) for name, module in makers.items()]
    handles += [module.register_forward_pre_hook(flush) for module in makers.values()]
    for module in modules:
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        # A part compiled on its own calls nothing that can be heard.
        with uncompiled(), listener:
            yield listener.runs
            listener.flush()
    finally:
        for handle in handles:
            handle.remove()
