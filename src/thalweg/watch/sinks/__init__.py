"""Trackers of others that take what a run records: one a file, found by being here, imported when used."""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
__all__ = __dir__()
