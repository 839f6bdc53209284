"""Sharpness against the optimizer's own limit of stability (arXiv 2110.04369)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg.probe import preconditioner_of, sharpness, stability_limit
from thalweg.watch.moment import Moment, Raw, few, kept, sensor

EXAMPLES = 256
PRODUCTS = 4
SURE = 0.1


@sensor("sharpness", share=2.0, every=20, passes=60, needs=("model", "loss_fn", "batch"), each=True)
def tracked_sharpness(at: Moment) -> list[Raw]:
    """Top eigenvalue of the (preconditioned) Hessian on one fixed batch, four products a visit.

    Each visit goes on from where the last one stopped, so that even the first reading never costs much at
    once; a value is given once its error bound is below a tenth, or when it is above the limit already.
    By layer, how much of it the leading eigenvector's part there makes up: together they are the whole.
    Of an optimizer without a known preconditioner or limit, the plain sharpness is given, and no ratio.
    """
    assert at.model is not None and at.loss_fn is not None
    model, loss_fn, memory = at.model, at.loss_fn, at.memory
    batch = memory.get("batch")
    if batch is None:
        batch = memory["batch"] = kept(few(at.batch, EXAMPLES))

    def loss() -> Tensor:
        return loss_fn(model, batch)

    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            params = [p for p in at.named.values() if p.requires_grad]
            warm = memory.get("vectors")
            if warm and len(warm[0]) != sum(p.numel() for p in params):
                warm = None
            diagonal = _known(preconditioner_of, at.optimizer, params)
            found = sharpness(loss, params, iterations=PRODUCTS, warm_start=warm, preconditioner=diagonal)
    finally:
        for module, training in flags:
            module.training = training
    memory["vectors"] = found.vectors
    memory["products"] = memory.get("products", 0) + found.hvps
    limit = _known(stability_limit, at.optimizer, 0) or math.inf
    # The value comes from below, so one above the limit is worth saying however far it is from converged.
    if found.residual > SURE * abs(found.top) and found.top <= limit:
        return []
    extra = {"products": float(memory["products"]), "residual": found.residual}
    if limit < math.inf:
        lr = float(at.optimizer.param_groups[0]["lr"])
        extra |= {"limit": limit, "ratio": found.top / limit, "lr": lr}
    (shares,) = found.shares({name: p for name, p in at.named.items() if p.requires_grad})
    parts = found.top * torch.tensor(list(shares.values()))
    return [Raw("sharpness", found.top, tuple(shares), parts, extra)]


def _known(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What ``ask`` says of an optimizer, or None if it is of no kind that it knows."""
    try:
        return ask(*arguments)
    except ValueError:
        return None
