"""Where the weighted layers of a model stand, found by running it once: any code in between is fine."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thalweg.nn._weighted_layers import NORMS, WEIGHTED, Place, check_understood


class _PastForward(ValueError):
    """A weight was read by somebody else than its layer."""


class _Flow(TorchDispatchMode):
    """Follows what the layers put out, operation by operation.

    Attributes:
        running: names of the modules that are running, the innermost last.
        fed: layers whose output another layer depends on.
        calls: for each run of a layer, its name and the modules that read its output.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.modules = dict(model.named_modules())
        self.owners: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            for p in module.parameters(recurse=False):
                self.owners.setdefault(id(p), []).append(name)
        self.running: list[str] = []
        self.fed: set[str] = set()
        self.calls: list[tuple[str, set[str]]] = []
        self._behind: dict[int, frozenset[str]] = {}
        self._made: dict[int, set[str]] = {}
        self._kept: list[Any] = []  # an id belongs to a tensor only while it lives
        for name, module in self.modules.items():
            module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
            module.register_forward_hook(self._leave(name))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so would import the compiler

    def _upstream(self, value: Any) -> frozenset[str]:
        found = [self._behind.get(id(t), frozenset()) for t in tree_leaves(value) if isinstance(t, Tensor)]
        return frozenset().union(*found)

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.running.append(name)
            if isinstance(module, WEIGHTED):
                self.fed |= self._upstream((args, kwargs))

        return enter

    def _leave(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, made: Any) -> None:
            self.running.pop()
            if isinstance(module, WEIGHTED):
                self._behind[id(made)] = self._upstream(made) | {name}
                self.calls.append((name, self._made.setdefault(id(made), set())))
                self._kept.append(made)

        return leave

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        here = self.running[-1] if self.running else ""
        for tensor in tree_leaves((args, kwargs)):
            if not isinstance(tensor, Tensor):
                continue
            if id(tensor) in self._made:
                self._made[id(tensor)].add(here)
            owners = self.owners.get(id(tensor), [])
            layers = [name for name in owners if isinstance(self.modules.get(name), WEIGHTED)]
            if layers and here not in owners:
                raise _PastForward(
                    f"module {layers[0]!r} must be run, got its weight read by module {here!r}: name in "
                    "layers those to normalise"
                )
        made = func(*args, **(kwargs or {}))
        behind = self._upstream((args, kwargs))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._behind[id(tensor)] = self._behind.get(id(tensor), frozenset()) | behind
        self._kept.append(made)
        return made


def watched_places(model: nn.Module, inputs: Any) -> dict[str, Place]:
    """Every linear and convolution layer that the model runs on ``inputs``, by name, in order.

    A copy runs, in evaluation mode and without its hooks.

    Args:
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        ValueError: the model does not run on them, or has weights that are not understood.
    """
    check_understood(model)
    try:
        model = copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(
            f"model must be one that can be copied, got {type(model).__name__}: {error}"
        ) from error
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if not _makes_weights(hook)]:
                del hooks[key]
    flow = _Flow(model)
    with torch.no_grad(), flow:
        try:
            if isinstance(inputs, Mapping):
                model(**inputs)
            else:
                model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        except _PastForward:
            raise
        except Exception as error:
            kind = type(model).__name__
            raise ValueError(
                f"inputs must be what {kind} runs on, got {type(error).__name__}: {error}"
            ) from error
    found: dict[str, Place] = {}
    for name, readers in flow.calls:
        reader = next(iter(readers)) if len(readers) == 1 else None
        norm = reader if isinstance(flow.modules.get(reader or ""), NORMS) else None
        past = found.get(name, Place(norm, False))
        found[name] = Place(norm if past.norm == norm else None, name not in flow.fed)
    return found


def _makes_weights(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
