"""Datasets, small models and a plain training loop for studies, tests and the demo; all of it works offline.

Every public name of every file in this folder can be imported from here.
"""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
