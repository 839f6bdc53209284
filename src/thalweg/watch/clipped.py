"""What clipping leaves of a gradient, seen from behind it: norms that are all the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.probe import gradient_norm_tensor
from thalweg.watch.moment import Moment

__all__ = ["left_by_clipping"]

# As far apart two norms of gradients that were clipped to the same may be.
SAME = 1e-4


def left_by_clipping(at: Moment, params: Sequence[nn.Parameter]) -> float:
    r"""The share c of the coming step's gradient that clipping by norm has left; 1 where it was not clipped.

    Steps are :math:`\eta\,c\,g`, so that c belongs to the rate: gradient descent with clipping is stable up
    to a sharpness of :math:`2 / (c \eta)`, and Adam's second moment, made of clipped gradients, is
    :math:`c^2` of what the gradient's own would be. A gradient that comes clipped has the largest norm that
    any has had, and not for the first time; then the loss of the batch at hand is differentiated once more,
    and tells the norm that it had. What accumulates over several batches is compared with that of the last.

    Args:
        params: those that ``at.loss_fn`` is differentiated by; those of the optimizer are ``at.named``.
    """
    assert at.model is not None and at.loss_fn is not None
    scale = 1.0 if at.scale is None else float(at.scale)
    norm = float(gradient_norm_tensor(at.named.values()).norm()) / scale
    most = at.memory.get("most", 0.0)
    at.memory["most"] = max(most, norm) if math.isfinite(norm) else most
    if not norm > 0 or not math.isclose(norm, most, rel_tol=SAME):
        return 1.0
    gradients = torch.autograd.grad(at.loss_fn(at.model, at.batch), params, allow_unused=True)
    held: list[Tensor] = [one.detach().float().norm() for one in gradients if one is not None]
    whole = float(torch.stack(held).norm()) if held else 0.0
    return min(norm / whole, 1.0) if 0 < whole < math.inf else 1.0
