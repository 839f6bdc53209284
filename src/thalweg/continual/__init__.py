"""A sequence of tasks in, one model that goes on learning out: methods against the loss of plasticity.

Every public name of every file in this folder can be imported from here.
"""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
