"""The desk: a daily paper page whose papers run, and a live page for every run, served on this machine.

Everything works offline on the built-in catalog; no page loads anything from elsewhere.
"""

from thalweg._core.discover import exports

__getattr__, __dir__ = exports(__name__)
