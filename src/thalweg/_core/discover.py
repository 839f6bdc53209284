"""A room's contents are whatever its files define: importing them is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from thalweg._core.checks import nearest


@cache
def modules(package: str) -> tuple[ModuleType, ...]:
    """Import every public module directly inside ``package``, in order of name."""
    root = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(root.__path__) if not info.name.startswith("_"))
    return tuple(importlib.import_module(f"{package}.{name}") for name in names)


def public_names(package: str) -> dict[str, Any]:
    """Every name that a module of ``package`` lists in its ``__all__``, with what it stands for."""
    return {name: getattr(module, name) for name, module in _places(package).items()}


def exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a room: its files are imported when a name is first asked for.

    A file must not be called like a public name: ``room.name`` would be the file once it is imported.
    """

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted(_places(package))
        if name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Only what is asked for: a name may bring a heavy import of its own.
        places = _places(package)
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{nearest(name, places)}")
        return getattr(places[name], name)

    return get, lambda: sorted(_places(package))


def _places(package: str) -> dict[str, ModuleType]:
    """The file of every public name."""
    return {name: module for module in modules(package) for name in getattr(module, "__all__", ())}
