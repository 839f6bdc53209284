"""What can be reached from modules and functions: copies of it, and the way back."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_REGISTERED = ("_parameters", "_buffers", "_modules")
# Of every module.
_BARE = frozenset(vars(nn.Module()))
# Entries of containers that hold more are data: neither they nor what is in them is looked into.
_MANY = 1000
_ATOMS = {bool, int, float, str, bytes, type(None), type, ModuleType, torch.dtype, torch.device, torch.Size}
_ABSENT = object()


class Reachable:
    """Notes what objects hold, down through containers, and puts it back.

    Attributes:
        parameters: that were met, of which only the place is noted.
        hooks: of the modules that were met.
    """

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.hooks: list[Any] = []
        self._spaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._ways: list[Callable[[], Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        # What has been seen stays alive, so that no number stands for two objects.
        self._seen: dict[int, Any] = {}
        self._largest: int | None = None

    def note(self, objects: Iterable[Any], largest: int | None = None) -> None:
        """Keep the state of ``objects``; tensors and arrays of more than ``largest`` bytes are not copied."""
        self._largest = largest
        waiting = list(objects)
        while waiting:
            one = waiting.pop()
            if type(one) not in _ATOMS and id(one) not in self._seen:
                self._seen[id(one)] = one
                waiting.extend(self._held(one))

    def tensor(self, tensor: Tensor, copies: bool = True) -> None:
        """Keep where the tensor's values are, and if ``copies`` the values."""
        self._seen[id(tensor)] = tensor
        plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
        if not plain or hasattr(tensor, "__tensor_flatten__"):
            return
        alias = tensor.data
        self._tensors.append((tensor, alias))
        if copies and self._fits(tensor.nbytes) and _can_be_written(tensor):
            self._copies.append((alias, alias.clone()))

    def back(self) -> None:
        for way in reversed(self._ways):
            way()
        for space, kept in self._spaces:
            if len(space) != len(kept) or not all(map(is_, space.values(), kept.values())):
                for name in space.keys() - kept.keys():
                    del space[name]
                _set(space, kept)
        for tensor, alias in self._tensors:
            if tensor.data_ptr() != alias.data_ptr() or tensor.shape != alias.shape:
                tensor.data = alias
        # Through an alias, for which no version counts: a graph that saved the tensor still stands.
        for alias, copy in self._copies:
            alias.copy_(copy)

    def _fits(self, size: int) -> bool:
        return self._largest is None or size <= self._largest

    def _held(self, one: Any) -> Iterable[Any]:
        """Note how to put back what ``one`` holds; gives what else to look into."""
        if isinstance(one, Tensor):
            if isinstance(one, nn.Parameter):
                self.parameters.append(one)
            # A value within a graph is not written into: that would spoil the graph.
            self.tensor(one, copies=one.grad_fn is None and not isinstance(one, nn.Parameter))
        elif isinstance(one, nn.Module):
            return self._module(vars(one))
        elif isinstance(one, dict):
            return [value for _, value in self._entries(one, list(one.items()), one.update)]
        elif isinstance(one, list | deque):
            return self._entries(one, list(one), one.extend)
        elif isinstance(one, set):
            return self._entries(one, list(one), one.update)
        elif isinstance(one, tuple):
            return one if len(one) <= _MANY else ()
        elif isinstance(one, FunctionType):
            return self._function(one)
        elif isinstance(one, MethodType):
            return one.__func__, *self._owner(one.__self__, one.__func__)
        elif isinstance(one, partial):
            return one.func, *one.args, *one.keywords.values()
        elif isinstance(one, torch.Generator):
            self._keep(one.set_state, one.get_state())
        elif isinstance(one, random.Random):
            self._keep(one.setstate, one.getstate())
        elif (numpy := sys.modules.get("numpy")) and isinstance(one, numpy.ndarray):
            if one.flags.writeable and not one.dtype.hasobject and self._fits(one.nbytes):
                self._keep(lambda copy: numpy.copyto(one, copy), one.copy())
        elif numpy and isinstance(one, numpy.random.Generator):
            self._keep(lambda state: setattr(one.bit_generator, "state", state), one.bit_generator.state)
        elif isinstance(call := getattr(one, "__call__", None), MethodType):  # noqa: B004
            return [call]
        return ()

    def _module(self, attributes: dict[str, Any]) -> list[Any]:
        kept = attributes.copy()
        self._spaces.append((attributes, kept))
        # A difference of sets, since nearly all attributes of most modules are bare.
        held = [kept[name] for name in kept.keys() - _BARE]
        for name in _REGISTERED:
            registered = kept.get(name)
            # A scripted module keeps its own elsewhere.
            if registered and isinstance(registered, dict):
                self._spaces.append((registered, registered.copy()))
                held += registered.values()
        for name in HOOKS:
            self.hooks += (kept.get(name) or {}).values()
        return held

    def _keep(self, put: Callable[[Any], Any], state: Any) -> None:
        self._ways.append(partial(put, state))

    def _names(self, space: dict[str, Any], names: Iterable[str]) -> list[Any]:
        """Attributes or globals of these names; gives their values."""
        kept = {name: space[name] for name in names if name in space}
        self._keep(lambda kept: _set(space, kept), kept)
        return list(kept.values())

    def _entries(self, container: Any, kept: list[Any], refill: Callable[[list[Any]], Any]) -> list[Any]:
        def back() -> None:
            flat = container.items() if isinstance(container, dict) else container
            if len(flat) != len(kept) or not all(map(_same, flat, kept)):
                container.clear()
                refill(kept)

        self._ways.append(back)
        return kept if len(kept) <= _MANY else []

    def _owner(self, owner: Any, method: Any) -> Iterable[Any]:
        """Attributes that a method names, itself or in another method that it calls."""
        if isinstance(owner, nn.Module) or not hasattr(owner, "__dict__") or not hasattr(method, "__code__"):
            return [owner]
        names = set(_names_in(method.__code__))
        for name in sorted(names):
            called = getattr(type(owner), name, None)
            names.update(_names_in(called.__code__) if isinstance(called, FunctionType) else ())
        # Only those: others may be set meanwhile, by on_finding in the recorder's thread.
        return self._names(vars(owner), names)

    def _function(self, function: FunctionType) -> list[Any]:
        """Variables that it closes over, defaults, and its globals if it is the user's own."""
        held = list(function.__defaults__ or ())
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            self._keep(partial(_fill, cell), value)
            held.append(value)
        space, code = function.__globals__, function.__code__
        if "site-packages" not in code.co_filename and not (function.__module__ or "").startswith("thalweg."):
            found = self._names(space, _names_in(code))
            held += [value for value in found if getattr(value, "__globals__", space) is space]
        return held


def _can_be_written(tensor: Tensor) -> bool:
    overlaps = any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    return not overlaps and not tensor.is_inference()


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, tuple) and len(one) == 2 and all(map(is_, one, other)))


def _set(space: dict[str, Any], kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        if space.get(name, _ABSENT) is not value:
            space[name] = value


def _fill(cell: CellType, value: Any) -> None:
    cell.cell_contents = value


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)
