"""thalweg: watch a training run, name what happens, apply the published remedy, see what it really does.

``thalweg.watch``, ``thalweg.optim`` and the other rooms are imported when they are first used.
"""

import importlib
import pkgutil
from types import ModuleType

from thalweg._core.checks import nearest

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    rooms = {
        info.name for info in pkgutil.iter_modules(__path__) if info.ispkg and not info.name.startswith("_")
    }
    if name in rooms:
        return importlib.import_module(f"thalweg.{name}")
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}{nearest(name, rooms)}")
