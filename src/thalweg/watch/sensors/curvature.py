"""Sharpness against the optimizer's own limit of stability (arXiv 2110.04369)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.factored import Factored
from thalweg.probe import preconditioner_of, sharpness, stability_limit
from thalweg.probe._quiet import quiet
from thalweg.watch.clipped import left_by_clipping
from thalweg.watch.coming_step import behind
from thalweg.watch.moment import Moment, Raw, kept, sensor
from thalweg.watch.normalising import normalising_as_in_training
from thalweg.watch.rates_by_group import noted
from thalweg.watch.whole_batches import part

EXAMPLES = 256
PRODUCTS = 4
SURE = 0.1
COMPLEX = (
    "curvature is read of real weights, and {} is complex; as a real parameter behind "
    "torch.view_as_complex it would be read"
)


@sensor("sharpness", share=2.0, every=20, passes=60, needs=("model", "loss_fn", "batch"), each=True)
def tracked_sharpness(at: Moment) -> list[Raw]:
    """Top eigenvalue of the (preconditioned) Hessian on one fixed batch, four products a visit.

    Each visit goes on from where the last one stopped, so that even the first reading never costs much at
    once; a value is given once its error bound is below a tenth, or when it is above the limit already.
    By layer, how much of it the leading eigenvector's part there makes up: together they are the whole.
    Groups whose own limits differ, by their rates or momenta, enter the preconditioner: what is given is
    compared with the limit of the first group that moves. Of an optimizer without a known preconditioner or
    limit, the plain sharpness is given, and no ratio.

    The preconditioner is that behind a step on this batch, see :func:`thalweg.watch.coming_step.behind`: of
    an entry whose gradient is rare, such as a pixel's that is mostly black, its past says nothing.

    Where gradients come clipped, the limit is that of the rate which clipping leaves, see
    :func:`thalweg.watch.clipped.left_by_clipping`; the share that it leaves is in ``extra``.

    Dropout is off. Batch normalisation normalises by the batch, as in training: by its running statistics
    another function would be read, which feels what the gradient does not, such as the size of the weights in
    front of it.
    """
    assert at.model is not None and at.loss_fn is not None
    model, loss_fn, memory = at.model, at.loss_fn, at.memory
    if odd := [name for name, p in at.named.items() if p.requires_grad and p.is_complex()]:
        return at.silent(COMPLEX.format(odd[0]))
    batch = memory.get("batch")
    if batch is None:
        batch = memory["batch"] = kept(part(at, at.batch, EXAMPLES))

    def loss() -> Tensor:
        return loss_fn(model, batch)

    groups = at.optimizer.param_groups
    limits = _known(lambda: [stability_limit(at.optimizer, group) for group in groups])
    limit = next((one for one in limits or () if one < math.inf), math.inf)
    alike = limits is None or limit == math.inf or all(math.isclose(one, limit) for one in limits)
    if not alike and hasattr(at.optimizer, "edge"):
        return at.silent(f"the limit of {type(at.optimizer).__name__} is not known for groups that differ")
    at.silent(None)
    norms = normalising_as_in_training(model)
    with quiet(model), torch.enable_grad():
        for norm in norms:
            norm.training = True
        params = [p for p in at.named.values() if p.requires_grad]
        warm = memory.get("vectors")
        left = left_by_clipping(at, params) if limit < math.inf else 1.0
        diagonal = _known(lambda: preconditioner_of(at.optimizer, params))
        if diagonal is not None:
            gradients = torch.autograd.grad(loss(), params, allow_unused=True)
            gradients = tuple(one if one is None else left * one for one in gradients)
            diagonal = behind(at.optimizer, params, diagonal, gradients)
        if not alike:
            diagonal = _to_one_limit(params, diagonal, groups, [limit / one for one in limits])
        if warm and len(warm[0]) != sum(map(_columns, diagonal or params)):
            warm = None
        found = sharpness(loss, params, iterations=PRODUCTS, warm_start=warm, preconditioner=diagonal)
    own, limit = limit, limit / left
    memory["vectors"] = found.vectors
    memory["products"] = memory.get("products", 0) + found.hvps
    # The value comes from below, so one above the limit is worth saying however far it is from converged.
    if found.residual > SURE * abs(found.top) and found.top <= limit:
        return []
    named = {name: p for name, p in at.named.items() if p.requires_grad}
    (shares,) = found.shares(named)
    extra = {"products": float(memory["products"]), "residual": found.residual}
    if limit < math.inf:
        extra |= {"limit": limit, "ratio": found.top / limit, "lr": float(groups[limits.index(own)]["lr"])}
        extra |= {"left by clipping": left} if left < 1 else {}
        held = {id(p): shares[name] for name, p in named.items()}
        extra |= noted(groups, [sum(held.get(id(p), 0.0) for p in group["params"]) for group in groups])
    parts = found.top * torch.tensor(list(shares.values()))
    return [Raw("sharpness", found.top, tuple(shares), parts, extra)]


def _to_one_limit(
    params: list[nn.Parameter],
    diagonal: list[Tensor | Factored] | None,
    groups: list[dict[str, Any]],
    scales: list[float],
) -> list[Tensor | Factored]:
    """The preconditioner times, group by group, one limit over the group's own.

    With L the limit of each parameter, steps with momentum start to grow where H x = L x has a solution: an
    eigenvalue of 1 of L^(-1/2) H L^(-1/2), whatever rates and momenta the groups have.
    """
    scale = {id(p): one for group, one in zip(groups, scales, strict=True) for p in group["params"]}
    plain = [torch.ones_like(p) for p in params] if diagonal is None else diagonal
    pairs = [(scale[id(p)], one) for p, one in zip(params, plain, strict=True)]
    return [one.scaled(by) if isinstance(one, Factored) else by * one for by, one in pairs]


def _columns(part: Tensor | Factored) -> int:
    """How many entries of an eigenvector belong to a parameter or its preconditioner."""
    return part.size if isinstance(part, Factored) else part.numel()


def _known(ask: Callable[[], Any]) -> Any:
    """What ``ask`` says of an optimizer, or None if it is of no kind that it knows."""
    try:
        return ask()
    except ValueError:
        return None
