"""Wrappers as data: found among the subclasses of Wrapper, described by what their makers take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from thalweg._core.checks import check_choice, nearest
from thalweg._core.discover import modules
from thalweg.optim._wrapper import Wrapper


def described(wrapper: Wrapper) -> dict[str, Any]:
    """``wrapper``'s name and the arguments that make it again; of a model only whether there is one."""
    kind = type(wrapper)
    if "inner" not in vars(wrapper):
        raise ValueError(f"optimizer must be the one for which it stands, got a {kind.__name__}")
    taken: dict[str, Any] = {"wrapper": kind.__name__}
    for name in _arguments(kind):
        attribute = kind.kept_as.get(name, name)
        try:
            value = getattr(wrapper, attribute)
        except AttributeError:
            raise ValueError(
                f"{kind.__name__} must keep its argument {name!r} as an attribute (see Wrapper.kept_as) to "
                f"have a spec, got no attribute {attribute!r}"
            ) from None
        taken[name] = value is not None if name == "model" else value
    return taken


def kind_of(entry: Mapping[str, Any]) -> type[Wrapper]:
    """The wrapper that ``entry`` names, all of whose fields it takes.

    Raises:
        ValueError: for an unknown wrapper or argument, a missing one, or no ``inner``.
    """
    kind = _find(entry["wrapper"])
    allowed = _arguments(kind)
    for key, value in entry.items():
        if key not in (*allowed, "wrapper", "inner"):
            raise ValueError(
                f"unknown argument {key!r} of {kind.__name__}, got {value!r}: it takes "
                f"{', '.join(['inner', *allowed])}{nearest(key, allowed)}"
            )
    for key in ("inner", *(name for name, one in allowed.items() if one.default is one.empty)):
        if key not in entry:
            raise ValueError(f"a spec of {kind.__name__} must hold {key!r}, got {sorted(entry)}")
    if not isinstance(entry["inner"], Mapping):
        raise ValueError(f"inner of {kind.__name__} must be the spec of an optimizer, got {entry['inner']!r}")
    return kind


def wrapped(
    kind: type[Wrapper], inner: Optimizer, arguments: dict[str, Any], model: nn.Module | None
) -> Wrapper:
    """Make the wrapper; ``model`` takes the place of a description that says that there is one."""
    if arguments.get("model"):
        if model is None:
            raise ValueError(f"model must be given, as the spec of {kind.__name__} says, got None")
        arguments = {**arguments, "model": model}
    elif "model" in arguments:
        arguments = {**arguments, "model": None}
    return _maker(kind)(inner, **arguments)


def _maker(kind: type[Wrapper]) -> Callable[..., Wrapper]:
    """The class itself, or ``around`` for a class that makes its inner optimizer on its own."""
    return getattr(kind, "around", kind)


def _arguments(kind: type[Wrapper]) -> dict[str, inspect.Parameter]:
    """What the maker of ``kind`` takes besides the inner optimizer."""
    taken = dict(inspect.signature(_maker(kind)).parameters)
    first = next(iter(taken), None)
    if first != "inner":
        raise ValueError(f"{kind.__name__} must take 'inner' first to have a spec, got {first!r}")
    del taken["inner"]
    return taken


def _find(name: Any) -> type[Wrapper]:
    modules("thalweg.optim")
    # A class that is defined anew, as in a notebook, takes the place of the one before.
    unique = {(kind.__module__, kind.__qualname__): kind for kind in _below(Wrapper)}
    found = [kind for kind in unique.values() if kind.__name__ == name and not inspect.isabstract(kind)]
    if len(found) > 1:
        places = ", ".join(sorted(kind.__module__ for kind in found))
        raise ValueError(f"wrapper must name one class, got {name!r}, which is in {places}")
    if not found:
        check_choice(
            "wrapper", name, {one.__name__ for one in unique.values() if not inspect.isabstract(one)}
        )
    return found[0]


def _below(kind: type[Wrapper]) -> Iterator[type[Wrapper]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
