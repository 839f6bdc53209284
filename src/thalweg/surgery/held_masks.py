"""Training with weights that stay zero, whatever the optimizer does to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import nearest
from thalweg.surgery._edit import bare

__all__ = ["HeldMasks", "hold_masks", "random_masks"]


class HeldMasks:
    """Keeps masked weights at zero until :meth:`remove`."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Let all weights move again."""
        for handle in self._handles:
            handle.remove()


def hold_masks(optimizer: torch.optim.Optimizer, model: nn.Module, masks: Mapping[str, Tensor]) -> HeldMasks:
    """Zero the masked weights now and after every step, and their gradients before it.

    After the step, because momentum and weight decay move weights without a gradient.

    Args:
        optimizer: any torch optimizer of the model's parameters.
        model: also behind DDP, DataParallel or torch.compile; names are those of what is inside.
        masks: name of a parameter to a boolean tensor of its shape, True where the weight stays.

    Raises:
        ValueError: a mask names no parameter, or has another shape or type.
    """
    model = bare(model)
    pairs = [(model.get_parameter(name), mask) for name, mask in checked_masks(model, masks).items()]

    @torch.no_grad()
    def before(*_: Any) -> None:
        for p, mask in pairs:
            if p.grad is not None:
                p.grad.masked_fill_(~mask, 0)

    @torch.no_grad()
    def after(*_: Any) -> None:
        for p, mask in pairs:
            p.masked_fill_(~mask, 0)

    after()
    return HeldMasks([optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)])


def random_masks(masks: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Masks that keep as many weights of each tensor, at random places: the control for any other choice."""
    shuffled = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        shuffled[name] = mask.flatten()[order].view_as(mask)
    return shuffled


def checked_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise ValueError(f"masks must map names of parameters to tensors, got {type(masks).__name__}")
    known = dict(bare(model).named_parameters())
    for name, mask in masks.items():
        if name not in known:
            raise ValueError(
                f"masks must name parameters of the model, got {name!r}{nearest(str(name), known)}"
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != known[name].shape:
            shape = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"mask of {name!r} must be a boolean tensor {tuple(known[name].shape)}, got {shape}"
            )
    return {name: mask.to(known[name].device) for name, mask in masks.items()}
