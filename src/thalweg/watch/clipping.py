"""Clipping put in front of an optimizer that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from thalweg._core.checks import check_positive

__all__ = ["clip_gradients"]


def clip_gradients(optimizer: Optimizer, norm: float) -> RemovableHandle:
    """Before each step from now on, scale the optimizer's gradients down to a Euclidean norm of ``norm``.

    The optimizer, its state and its learning rates stay as they are. Gradients that a closure makes are
    clipped whenever it has made them; those that a GradScaler has scaled, at their true size. A run that
    watches the optimizer reads behind the clipping.

    Args:
        norm: of all gradients of the optimizer together, above 0.

    Returns:
        A handle; ``handle.remove()`` ends it.

    Raises:
        ValueError: ``norm`` is not above 0.
    """
    check_positive("norm", norm)

    def clip(scale: Any = None) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(held, norm if scale is None else norm * float(scale))

    def before(stepping: Optimizer, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            clip(getattr(stepping, "grad_scale", None))
            return None

        def clipped() -> Any:
            loss = closure()
            clip()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": clipped}
        return (args[0], clipped, *args[2:]), dict(kwargs)

    handle = optimizer.register_step_pre_hook(before)
    # In front of whoever looks on: what is read before a step is what the step takes.
    hooks: Any = optimizer._optimizer_step_pre_hooks
    hooks.move_to_end(handle.id, last=False)
    return handle
