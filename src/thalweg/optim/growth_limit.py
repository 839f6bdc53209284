"""The norm-growth limiter of Fira (arXiv 2410.01623): no update much larger than the one before."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_number
from thalweg.optim.transform import Transform, part, whole

__all__ = ["norm_growth_limit"]

# An update this small against the gradient is nothing to measure the next one by: it would be held there.
NEGLIGIBLE = 1e-6


@part
def norm_growth_limit(growth: float = 1.01) -> Transform:
    r"""Let the norm of each tensor's update grow by at most a factor a step.

    .. math:: u_t \leftarrow u_t \min\!\left(1,\; \frac{\gamma\,\|u_{t-1}\|}{\|u_t\|}\right)

    :math:`u_{t-1}` is the last update that went out of it. The first is not limited, and one that is as
    good as zero against the tensor's gradient is passed on but not remembered: the released code remembers
    it, and then holds all later ones near zero.

    Args:
        growth: :math:`\gamma`, at least 1.

    State: ``norm``, a single number, 0 while none is known.
    """
    check_number("growth", growth, 1, float("inf"), "[)")

    def fresh(p, k):
        return torch.zeros((), dtype=torch.promote_types(p.dtype.to_real(), torch.float32), device=p.device)

    def update(u, p, state, k):
        kind = state.norm.dtype
        norm = torch.linalg.vector_norm(u, dtype=kind)
        limit = k.growth * state.norm
        over = (limit > 0) & (norm > limit)
        negligible = norm <= NEGLIGIBLE * torch.linalg.vector_norm(k.gradient, dtype=kind)
        stored = torch.where(negligible, state.norm, torch.where(over, limit, norm))
        return u * torch.where(over, limit / norm, 1.0), state.replace(norm=stored)

    return whole(update, slots=("norm",), fresh={"norm": fresh}, gradient=True, degree=1, growth=growth)
