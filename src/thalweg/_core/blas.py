"""How many threads numpy's products take: one, in commands that answer by many small ones."""

from __future__ import annotations

import os

__all__ = ["one_blas_thread"]

_SETTINGS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def one_blas_thread() -> None:
    """Ask the linear algebra below numpy for one thread; whoever has set a number keeps it.

    To be called before numpy is loaded, which reads it once. A few tokens of a question are no work to share:
    on a busy machine the threads wait for each other, and a question takes a second.
    """
    for name in _SETTINGS:
        os.environ.setdefault(name, "1")
