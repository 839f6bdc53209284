"""What else than the module tree holds a model's modules: a deep copy or a new layer would not reach it."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

OTHERWISE = ("_parameters", "_buffers", "_modules", "_compiled_call_impl")  # copied well, or left out


def refuse_captured(model: nn.Module, argument: str) -> None:
    """Refuse a model with functions that hold its modules: a copy's would go on running the old weights.

    Raises:
        ValueError: there is one, such as ``self.f = lambda x: self.layer(x)``; the module is named.
    """
    own = {*map(id, model.modules()), *map(id, model.parameters())}
    for name, key, value in _attributes(model):
        if isinstance(value, FunctionType) and any(id(one) in own for one in _inside(value, set())):
            raise ValueError(
                f"{argument} must not keep functions that hold its own modules, since a copy's would run the "
                f"old ones; got {key!r} of {name!r} ({type(model.get_submodule(name)).__name__})"
            )


def refuse_listed(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse to replace layers that the model also keeps in a list or dictionary of its own.

    Raises:
        ValueError: there is one; it is named.
    """
    names = {id(layer): name for name, layer in layers.items()}
    for name, key, value in _attributes(model):
        if id(value) in names:
            raise ValueError(
                f"layer {names[id(value)]!r} ({type(value).__name__}) must be kept as a submodule alone, "
                f"got it also in {key!r} of {name!r}, which would go on running the old one"
            )


def _attributes(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Name of a module, of its attribute, and each thing in it that is no container."""
    for name, module in model.named_modules():
        compiled = isinstance(getattr(module, "_orig_mod", None), nn.Module)
        if compiled or isinstance(module, torch.jit.ScriptModule):
            continue  # these see to their copies themselves
        for key, value in vars(module).items():
            if key not in OTHERWISE and "hooks" not in key:
                yield from ((name, key, leaf) for leaf in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, partial):
        yield value.func  # its arguments are copied
    else:
        yield value


def _inside(function: FunctionType, seen: set[int]) -> Iterator[Any]:
    """What a function holds: in closure, defaults and globals that it reads, and in functions among these."""
    if id(function) in seen:
        return
    seen.add(id(function))
    held: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            continue  # not filled yet
    read = (one.argval for one in dis.get_instructions(function) if one.opname == "LOAD_GLOBAL")
    held += [function.__globals__[name] for name in read if name in function.__globals__]
    yield from _contents(held, seen)


def _contents(held: Iterable[Any], seen: set[int]) -> Iterator[Any]:
    for value in held:
        for leaf in _leaves(value):
            one = leaf.__self__ if isinstance(leaf, MethodType) else leaf
            if isinstance(one, FunctionType):
                yield from _inside(one, seen)
            else:
                yield one
