"""Margins of a classifier's answers, and the gradient of each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from thalweg.probe._example_batch import changed
from thalweg.probe._graphs import check_reachable, dense
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call

Jacobian = tuple[Tensor, dict[str, Tensor]]  # margins and their gradients, one row a target


def margins_of(outputs: Any, targets: Tensor) -> Tensor:
    """Margin of each target, in the shape of ``targets``: cross-entropy is softplus of its negative."""
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return one tensor of logits, got {type(outputs).__name__}")
    if outputs.shape == (*targets.shape, 1):
        outputs = outputs.squeeze(-1)
    if outputs.shape == targets.shape:
        return outputs * targets.to(outputs.dtype)
    if outputs.shape[:-1] != targets.shape or targets.dtype.is_floating_point:
        raise ValueError(
            f"targets must be -1 or 1 for one logit an example or class numbers for several, got "
            f"{targets.dtype}, {tuple(targets.shape)} for outputs of shape {tuple(outputs.shape)}"
        )
    own = outputs.gather(-1, targets.unsqueeze(-1))
    return (own - _without(outputs, targets).logsumexp(-1, keepdim=True)).squeeze(-1)


def _without(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits with the target's own out of the way."""
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    return outputs.masked_fill(classes == targets.unsqueeze(-1), -torch.inf)


def check_targets(outputs: Any, targets: Tensor, counts: Tensor) -> None:
    """Refuse targets that are none of the model's; inside vmap their values cannot be looked at."""
    found = logits_of(outputs)
    margins_of(found[:1] if isinstance(found, Tensor) and found.dim() else outputs, targets[:1])
    outputs = found
    one_logit = outputs.shape[: targets.dim()] == outputs.shape or outputs.shape[-1] == 1
    wrong = targets.abs() != 1 if one_logit else (targets < 0) | (targets >= outputs.shape[-1])
    if bool((wrong & counts).any()):
        allowed = "-1 or 1" if one_logit else f"in [0, {outputs.shape[-1]})"
        raise ValueError(f"targets must be {allowed}, got {targets[wrong & counts][0].item()}")


def vectorised(model: nn.Module, params: dict[str, Tensor], inputs: Any, targets: Tensor) -> Jacobian:
    tensors: list[Tensor] = []
    changed(inputs, lambda t: tensors.append(t) if _by_example(t, targets) else None)

    def margins(chosen: dict[str, Tensor], mine: tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, Tensor]:
        given = iter(mine)
        one = changed(inputs, lambda t: next(given)[None] if _by_example(t, targets) else t)
        if isinstance(one, Mapping):
            outputs = functional_call(model, chosen, (), dict(one))
        else:
            outputs = functional_call(model, chosen, tuple(one) if isinstance(one, tuple | list) else (one,))
        found = margins_of(outputs, target[None]).reshape(-1)
        return found, found

    over = vmap(jacrev(margins, has_aux=True), (None, 0, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        gradients, found = over(params, tuple(tensors), targets)
    return found.flatten(), {name: rows.flatten(0, 1) for name, rows in gradients.items()}


def _by_example(t: Tensor, targets: Tensor) -> bool:
    return t.dim() > 0 and len(t) == len(targets)


def one_by_one(model: nn.Module, params: dict[str, Tensor], inputs: Any, targets: Tensor) -> Jacobian:
    with torch.enable_grad():
        found = margins_of(call(model, inputs), targets).reshape(-1)
        check_reachable("model", found)
        rows = [
            torch.autograd.grad(
                one, list(params.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for one in found
        ]
    columns = [torch.stack([dense(g) for g in column]) for column in zip(*rows, strict=True)]
    return found.detach(), dict(zip(params, columns, strict=True))


def together(
    model: nn.Module, params: dict[str, Tensor], inputs: Any, targets: Tensor, counts: Tensor, chunk: int
) -> Jacobian:
    """Margins that count and their gradients, where each depends on all examples by their statistics."""
    held = list(params.values())
    with torch.enable_grad():
        found = margins_of(call(model, inputs), targets).reshape(-1)[counts.flatten()]
        check_reachable("model", found)
        rows = []
        for some in torch.eye(len(found), dtype=found.dtype, device=found.device).split(chunk):
            try:
                parts = torch.autograd.grad(
                    found, held, some, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
            except (RuntimeError, NotImplementedError):  # an operation without a batching rule
                parts = _one_after_the_other(found, held, some)
            rows.append(
                [
                    p.new_zeros(len(some), *p.shape) if g is None else g
                    for g, p in zip(parts, held, strict=True)
                ]
            )
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    return found.detach(), dict(zip(params, columns, strict=True))


def _one_after_the_other(found: Tensor, held: list[Tensor], wanted: Tensor) -> tuple[Tensor, ...]:
    rows = [
        torch.autograd.grad(found, held, one, retain_graph=True, allow_unused=True, materialize_grads=True)
        for one in wanted
    ]
    return tuple(torch.stack([dense(g) for g in column]) for column in zip(*rows, strict=True))
