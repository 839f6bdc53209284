"""Weight norms by parameter: growing weights make steps smaller and logits larger."""

from __future__ import annotations

import torch

from thalweg.watch.moment import Moment, Raw, sensor


@sensor("weight norm", share=0.5, every=10, passes=0.3, each=True)
def weight_norm(at: Moment) -> list[Raw]:
    """Euclidean norm of each parameter and of all together."""
    with torch.no_grad():
        # A sum kept in bfloat16 would stop growing after a few hundred entries.
        norms = torch.stack([_norm(p.detach()) for p in at.named.values()])
    return [Raw("weight norm", norms.norm(), tuple(at.named), norms)]


def _norm(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32)).float()
