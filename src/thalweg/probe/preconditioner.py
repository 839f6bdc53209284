"""What an optimizer multiplies its gradient by, read from its state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from thalweg._core.factored import Factored
from thalweg.probe.cost import costs

__all__ = ["preconditioner_of"]

KNOWN = "torch.optim.SGD, Adam, AdamW and RMSprop"


def _root(optimizer: torch.optim.Optimizer, group: dict, state: dict) -> Tensor:
    """The denominator of the optimizer's step, without eps."""
    if isinstance(optimizer, torch.optim.RMSprop):
        square = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"].square()
        return square.clamp_min(0).sqrt()
    square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    return (square / correction).sqrt()


@torch.no_grad()
@costs(0, 0, memory="one tensor a parameter")
def preconditioner_of(optimizer: torch.optim.Optimizer, params: Iterable[Tensor]) -> list[Tensor | Factored]:
    r"""The frozen :math:`P` of each parameter, mostly a diagonal: a step is rate times P times momentum.

    Adam and AdamW: :math:`1/(\sqrt{v/(1-\beta_2^t)}+\epsilon)`, with the largest :math:`v` so far under
    AMSGrad. RMSprop: :math:`1/(\sqrt{v}+\epsilon)`. SGD, and any parameter not yet stepped: ones. Any other
    optimizer is asked: ``optimizer.preconditioner(p)`` returns a tensor shaped like ``p``, a matrix known by
    a factor (an Adam within a subspace, GaLore's), or None for ones. None is also what a
    :class:`thalweg.optim.Descent` answers whose steps are no multiple of the gradient: signs (Lion), Fira's
    residual, DiffGrad's friction. No stability limit is known for these either.

    Args:
        optimizer: holds every one of ``params``.
        params: tensors.

    Returns:
        One a parameter, of its shape, in units of parameter over gradient; what is no tensor has products
        ``times(g)``, ``factor(x)`` and ``transposed(g)``.

    Raises:
        ValueError: a parameter is not in the optimizer; the optimizer neither has a ``preconditioner`` method
            nor is of a known type; its answer has the wrong shape.
    """
    if not hasattr(optimizer, "param_groups"):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    ask = getattr(optimizer, "preconditioner", None)
    adaptive = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.RMSprop)
    if ask is None and not adaptive and not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(
            f"optimizer must be one of {KNOWN}, or have a method preconditioner(p); "
            f"got {type(optimizer).__name__}"
        )
    diagonals: list[Tensor | Factored] = []
    for index, p in enumerate(params):
        if id(p) not in groups:
            raise ValueError(f"params[{index}] must belong to the optimizer, got one that it does not hold")
        state = optimizer.state.get(p, {})
        if ask is not None:
            diagonal = ask(p)
        elif adaptive and state:
            diagonal = 1 / (_root(optimizer, groups[id(p)], state) + groups[id(p)]["eps"])
        else:
            diagonal = None
        if diagonal is None:
            diagonal = torch.ones_like(p)
        if diagonal.shape != p.shape:
            raise ValueError(
                f"optimizer.preconditioner(params[{index}]) must have shape {tuple(p.shape)}, "
                f"got {tuple(diagonal.shape)}"
            )
        diagonals.append(diagonal.detach() if isinstance(diagonal, Tensor) else diagonal)
    return diagonals
