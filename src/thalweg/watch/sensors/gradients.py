"""Gradient norms by parameter."""

from __future__ import annotations

import torch

from thalweg.probe import gradient_norm_tensor
from thalweg.watch.moment import Moment, Raw, sensor


@sensor("gradient norm", share=2.0, every=1, passes=0.3, each=True, early=True)
def gradient_norm(at: Moment) -> list[Raw]:
    """Euclidean norm of each parameter's gradient and of all together."""
    norms = gradient_norm_tensor(at.named.values())
    if at.scale is not None:
        norms = norms / torch.as_tensor(at.scale, device=norms.device)
    return [Raw("gradient norm", norms.norm(), tuple(at.named), norms)]
