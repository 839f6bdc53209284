"""Activations that are function calls, ``F.relu(self.fc1(x))``, heard while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
_SCALINGS = _found("mul", "div", "true_divide", "__mul__", "__rmul__", "__truediv__")


class _Listener(TorchFunctionMode):
    def __init__(self, heard: frozenset[Any], before: Before | None, after: After | None) -> None:
        super().__init__()
        self.heard, self.before, self.after = heard, before, after
        self.layer: str | None = None
        self.scaled: Any = None
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
        value = args[0] if args else kwargs.get("input")
        if not self._listens(func, value):
            result = func(*args, **kwargs)
            if func in _SCALINGS:
                self.scaled = result
            return result
        others = {key: entry for key, entry in kwargs.items() if key != "input"}
        name = self.layer if self.layer is not None else func.__name__
        count = self.runs[name] = self.runs.get(name, -1) + 1
        run = f"{name}[{count}]" if count else name
        if self.before is not None:
            self.before(run, lambda tensor: func(tensor, *args[1:], **others), value.detach())
        result = func(*args, **kwargs)
        if self.after is not None:
            self.after(run, result.detach())
        return result


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
    function, if none ran yet. Modules made of such functions are heard too; what is computed in C++ (a
    recurrent cell) or by a hand-written formula is not, nor what is called within one of ``modules``.

    Yields:
        A dictionary that holds the runs' names once the model has run.
    """
    listener = _Listener(heard, before, after)

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            listener.layer = name

        return hook

    def enter(module: nn.Module, inputs: Any) -> None:
        listener.inside += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        listener.inside -= 1

    handles = [module.register_forward_hook(note(name)) for name, module in with_weights(model).items()]
    for module in modules:
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        # A part compiled on its own calls nothing that can be heard.
        with uncompiled(), listener:
            yield listener.runs
    finally:
        for handle in handles:
            handle.remove()
