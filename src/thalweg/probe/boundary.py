"""Points on a classifier's decision boundary, found between examples that it tells apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["boundary_points"]

HALVINGS = 20
PAIRS = 2**22  # of points that are looked at together


@costs(HALVINGS + 1, 0, memory="two copies of the points")
def boundary_points(model: nn.Module, points: Tensor, *, halvings: int = HALVINGS, seed: int = 0) -> Tensor:
    """One point between each point and a random other of another predicted class, where the prediction turns.

    Each is bisected between its two ends, so that it lies on the boundary of the start's class to within
    ``2**-halvings`` of their distance, on the side that is still that class's. Used with
    :func:`local_complexity` to see regions gather there (arXiv 2402.15555).

    Args:
        model: from points (n, ...) to logits (n, classes), as a tensor, as ``.logits`` or first in a tuple;
            run in evaluation mode without gradients.
        points: float tensor (n, ...).
        halvings: steps of the bisection.
        seed: which partner each point gets; the global random state is left alone.

    Returns:
        Shape of ``points``; row i belongs to point i.

    Raises:
        ValueError: logits have another shape or are not finite; all points have one predicted class.
    """
    check_count("halvings", halvings)
    model = bare(model)

    def predicted(inputs: Tensor) -> Tensor:
        logits = logits_of(model(inputs))
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not bool(logits.isfinite().all()):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must return finite logits (points, classes), got {got}")
        if logits.shape[1] < 2:
            raise ValueError("model must return logits of two classes or more, got one")
        return logits.argmax(1)

    with quiet(model):
        start = predicted(points)
        if bool((start == start[:1]).all()):
            raise ValueError("points must have two predicted classes or more, got one")
        source, rows = torch.Generator().manual_seed(seed), []
        for some in start.split(max(1, PAIRS // len(start))):
            draws = torch.rand(len(some), len(start), generator=source).to(points.device)
            rows.append((draws * (some[:, None] != start)).argmax(1))
        partner = torch.cat(rows)
        near, far = points, points[partner]
        for _ in range(halvings):
            middle = (near + far) / 2
            stays = (predicted(middle) == start).view(-1, *[1] * (points.dim() - 1))
            near, far = torch.where(stays, middle, near), torch.where(stays, far, middle)
    return near
