"""Gradient in, step out: transforms, the chain that runs them, named recipes, schedules.

Every public name of every file in this folder can be imported from here.
"""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
