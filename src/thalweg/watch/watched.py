"""The optimizers of a run: what each moves, what its readings are called, how its gradients are scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.watch.hooks import named_parameters
from thalweg.watch.optimizer_kind import preconditions

__all__ = ["Watched", "watched_optimizers"]


@dataclass
class Watched:
    """One optimizer of a run.

    Attributes:
        label: what its readings are named by, empty for the first of a run.
        title: what it is called in findings, empty where there is only one.
        named: its parameters by their names in the model.
        held: the same as the optimizer has them.
    """

    optimizer: Optimizer
    label: str
    title: str
    named: dict[str, nn.Parameter]
    held: list[nn.Parameter]

    def about(self) -> dict[str, Any]:
        """What rules want to know of it."""
        group = self.optimizer.param_groups[0]
        # A schedule that warms up has already set lr to its first, small value.
        lr = group.get("initial_lr", group.get("lr"))
        about = {"optimizer": type(self.optimizer).__name__, "adaptive": preconditions(self.optimizer)}
        return about | ({} if lr is None else {"lr": float(lr)})

    def refresh(self, model: nn.Module | None) -> None:
        """Find the parameters again if others are held: of a new group, or of a layer that was replaced."""
        held = _held(self.optimizer)
        if len(held) == len(self.held) and all(map(is_, held, self.held)):
            return
        self.held = held
        try:
            self.named = named_parameters(model, held)
        except ValueError:
            # None of them is the model's any more, which is no reason to stop.
            self.named = named_parameters(None, held)

    def finite(self) -> bool:
        """Whether all weights and gradients are; waits for the device."""
        tensors = (t.detach() for p in self.named.values() for t in (p, p.grad) if t is not None)
        return all(bool(torch.isfinite(t.coalesce().values() if t.is_sparse else t).all()) for t in tensors)

    @property
    def scale(self) -> float | Tensor | None:
        """What gradients are still multiplied by: fused ones undo a GradScaler's scale within the step."""
        return getattr(self.optimizer, "grad_scale", None)

    @property
    def overflowed(self) -> Tensor | None:
        """Whether a GradScaler found infinities, so that the coming step does nothing; on the device."""
        return None if self.scale is None else getattr(self.optimizer, "found_inf", None)


def watched_optimizers(model: nn.Module | None, optimizers: Any) -> list[Watched]:
    """One optimizer, a sequence, or a mapping of names to them.

    Raises:
        ValueError: what is given is no optimizer, holds no parameters or none of the model, or comes twice.
    """
    if isinstance(optimizers, Mapping):
        named = {str(name): one for name, one in optimizers.items()}
    elif isinstance(optimizers, Sequence) and not isinstance(optimizers, str):
        named = _by_class(optimizers)
    else:
        named = {"": optimizers}
    if not named:
        raise ValueError("optimizer must be one optimizer or several, got none")
    several = len(named) > 1
    found: list[Watched] = []
    for name, given in named.items():
        if not isinstance(given, Optimizer):
            raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(given).__name__}")
        one = unwrapped(given)
        if any(one is other.optimizer for other in found):
            raise ValueError(f"optimizer must name each optimizer once, got {name!r} a second time")
        params = _held(one)
        if not params:
            raise ValueError("optimizer must hold parameters, got none")
        label = name if found else ""
        parameters = named_parameters(model, params)
        found.append(Watched(one, label, name if several else "", parameters, params))
    return found


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that runs step hooks, behind a stand-in of Accelerate, Lightning or Fabric."""
    # torch marks the step that it has wrapped with hooks when an optimizer is built; stand-ins are not built.
    while not hasattr(type(optimizer).step, "hooked"):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    return optimizer


def _held(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _by_class(optimizers: Sequence[Any]) -> dict[str, Any]:
    """Names for optimizers: their classes, numbered from the second of a class on."""
    named: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for one in optimizers:
        kind = type(unwrapped(one)).__name__ if isinstance(one, Optimizer) else type(one).__name__
        counts[kind] = counts.get(kind, 0) + 1
        named[kind if counts[kind] == 1 else f"{kind} {counts[kind]}"] = one
    return named


def sharded(model: nn.Module | None, optimizers: Sequence[Watched]) -> bool:
    """Whether parameters are spread over processes, so that one alone must neither read nor run them."""
    params = [p for one in optimizers for p in one.named.values()]
    spread = any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in params)
    modules = [] if model is None else model.modules()
    return spread or any(type(module).__name__ == "FullyShardedDataParallel" for module in modules)


def steps_taken(optimizer: Optimizer) -> int | None:
    """How many steps an optimizer's state says it has taken; None if it does not count."""
    counts = [
        state["step"] for state in optimizer.state.values() if isinstance(state, dict) and "step" in state
    ]
    return max((int(torch.as_tensor(count)) for count in counts), default=None)
