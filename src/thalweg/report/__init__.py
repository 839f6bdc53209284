"""A run store in, one self-contained page out."""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
