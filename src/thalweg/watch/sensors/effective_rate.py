"""The learning rate that scale-invariant weights feel (arXiv 2407.01800, 2006.08217)."""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor, nn

from thalweg.probe import effective_learning_rate
from thalweg.watch.moment import Moment, Raw, sensor

LEANS = 0.1
SURE = 3
FORGETS = 0.95


@sensor("effective rate", share=0.5, every=10, passes=0.3, each=True)
def effective_rate(at: Moment) -> list[Raw]:
    """lr/||w||^2 (SGD) or lr/||w|| (Adam and its kin) of weights whose length the loss does not feel.

    Those have a gradient at right angles to themselves at every reading, three of them at least: far nearer
    to it than chance would have it. Nothing is given before, or where there is no such weight. The median of
    their learning rates is in ``extra``, and beside it that of each weight whose group has another.
    """
    if any(group.get("lr") is None for group in at.optimizer.param_groups):
        return at.silent("the optimizer sets its learning rate itself")
    leans: dict[str, tuple[int, float]] = at.memory.setdefault("leans", {})
    matrices = {name: p for name, p in at.named.items() if p.dim() > 1}
    held = {name: p for name, p in matrices.items() if p.grad is not None and not p.grad.is_sparse}
    if not held:
        return []
    for name, lean in zip(held, _leans(list(held.values())).tolist(), strict=True):
        count, worst = leans.get(name, (0, 0.0))
        # A gradient of nothing says nothing.
        if math.isfinite(lean):
            leans[name] = count + 1, max(FORGETS * worst, lean)
    invariant = {
        name: p for name, p in held.items() if leans.get(name, (0, 0.0))[0] >= SURE and leans[name][1] < LEANS
    }
    if not invariant:
        return []
    try:
        rates = effective_learning_rate(at.optimizer, invariant)
    except ValueError:
        rates = effective_learning_rate(at.optimizer, invariant, steps="normalised")
    values = torch.tensor(list(rates.values()))
    own = {id(p): float(group["lr"]) for group in at.optimizer.param_groups for p in group["params"]}
    plain = {name: own[id(invariant[name])] for name in rates}
    rate = median(plain.values())
    others = {f"rate of {name}": one for name, one in plain.items() if one != rate}
    return [Raw("effective rate", median(rates.values()), tuple(rates), values, {"rate": rate, **others})]


@torch.no_grad()
def _leans(params: list[nn.Parameter]) -> Tensor:
    """|cosine| of each weight and its gradient, times the root of their number of entries: by chance, 1."""
    found = []
    for p in params:
        assert p.grad is not None
        kind = torch.promote_types(p.dtype, torch.float32)
        weight, gradient = p.detach().flatten().to(kind), p.grad.flatten().to(kind)
        lengths = torch.linalg.vector_norm(weight) * torch.linalg.vector_norm(gradient)
        found.append(torch.dot(weight, gradient).abs() / lengths * math.sqrt(p.numel()))
    return torch.stack(found).float()
