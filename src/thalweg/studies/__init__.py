"""A paper's claim in, a measured verdict out: one file a paper, the runner, the evidence.

A file with a ``STUDY`` is a study; putting it into this folder is all the registration there is. Every public
name of every file can be imported from here.
"""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
