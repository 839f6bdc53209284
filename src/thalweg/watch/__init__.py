"""A live run in, readings and findings out.

The room is callable: ``thalweg.watch(model, opt)`` is :func:`thalweg.watch.observe.watch`.
"""

import sys
from types import ModuleType
from typing import Any

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from thalweg.watch.observe import watch

        return watch(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
