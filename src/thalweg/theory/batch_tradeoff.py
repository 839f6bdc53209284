"""Steps against examples (arXiv 1812.06162): the batch size beyond which steps hardly get fewer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from thalweg.theory._arrays import as_floats

__all__ = ["BatchTradeoff", "critical_batch_size"]


@dataclass(frozen=True)
class BatchTradeoff:
    """Fewest steps, fewest examples, and the batch size at which both are twice that.

    Attributes:
        critical: the critical batch size ``min_examples / min_steps``; infinite where steps still fall like
            1 / batch size, 0 where they do not fall.
        min_steps: to the loss, with a batch as large as can be.
        min_examples: to the loss, with a batch as small as can be.
        scatter: relative standard deviation of the steps about the fit.
    """

    critical: float
    min_steps: float
    min_examples: float
    scatter: float


def critical_batch_size(batch_sizes: Any, steps: Any) -> BatchTradeoff:
    r"""Critical batch size from the steps that runs of several batch sizes took to one loss.

    With S steps and :math:`E = B S` examples, :math:`(S / S_{min} - 1)(E / E_{min} - 1) = 1` is
    :math:`S = S_{min} + E_{min} / B`: least squares of relative errors, both numbers at least 0. The surge
    law (arXiv 2405.14578) has its peak near :math:`E_{min} / S_{min}`.

    Args:
        batch_sizes: (n,) in examples, at least 3 different ones.
        steps: (n,) to the same loss, each run at the best learning rate of its batch size.

    Raises:
        ValueError: lengths differ, there are too few batch sizes, or a number is not above 0.
    """
    sizes = as_floats("batch_sizes", batch_sizes, low=0, open_low=True)
    taken = as_floats("steps", steps, low=0, open_low=True)
    if len(sizes) != len(taken) or len(set(sizes)) < 3:
        raise ValueError(
            f"batch_sizes and steps must have one length and 3 different sizes, got {len(sizes)} and "
            f"{len(taken)} with {len(set(sizes))} sizes"
        )
    columns = np.stack([1 / taken, 1 / (sizes * taken)], axis=1)
    unit = np.linalg.norm(columns, axis=0)
    scaled, distance = nnls(columns / unit, np.ones(len(taken)))
    least, examples = map(float, scaled / unit)
    return BatchTradeoff(
        critical=examples / least if least else math.inf,
        min_steps=least,
        min_examples=examples,
        scatter=float(distance) / math.sqrt(len(taken) - 2),
    )
