"""Assumptions in, predicted numbers out: solvable models and fitted laws.

Every public name of every file in this folder can be imported from here.
"""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
