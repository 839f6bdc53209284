"""Learning rates as scale-invariant weights feel them: larger weights make smaller steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg._core.checks import check_choice, check_positive, nearest
from thalweg.probe._logits import logits_of
from thalweg.probe._named import NamedParams, named
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["effective_learning_rate", "scale_dependence"]

POWERS = {"gradient": 2, "normalised": 1}
NORMALISED = ("adadelta", "adagrad", "adam", "lion", "muon", "rmsprop", "rprop", "signsgd")


def _steps_like(optimizer: torch.optim.Optimizer) -> str:
    # What makes the step, inside of wrappers such as thalweg.optim.SAM.
    while isinstance(inner := getattr(optimizer, "inner", None), torch.optim.Optimizer):
        optimizer = inner
    kinds = [cls.__name__.lower() for cls in type(optimizer).__mro__]
    # How a chain's step answers to the gradient's length its links say themselves.
    degrees = [getattr(link, "degree", None) for link in getattr(optimizer, "chain", (None,))]
    if None not in degrees:
        return "gradient" if all(degrees) else "normalised"
    if any(kind.startswith(("sgd", "asgd")) for kind in kinds):
        return "gradient"
    if any(word in kind for kind in kinds for word in NORMALISED):
        return "normalised"
    raise ValueError(
        'steps must be "gradient" or "normalised" for an optimizer that is neither SGD nor of Adam\'s kind, '
        f"got None with {type(optimizer).__name__}"
    )


@torch.no_grad()
@costs(0, 0, memory="one number a tensor")
def effective_learning_rate(
    optimizer: torch.optim.Optimizer, named_params: NamedParams, *, steps: str | None = None
) -> dict[str, float]:
    r"""The learning rate that the same weight of norm 1 would need for the same turn (arXiv 2407.01800).

    From :math:`f(cW) = f(W)` follow :math:`\nabla f(cW) = \nabla f(W)/c` and :math:`W \cdot \nabla f = 0`:
    plain gradient steps of rate :math:`\eta` act like :math:`\eta/\|W\|^2`, steps whose length does not
    depend on the gradient's (Adam's, signs) like :math:`\eta/\|W\|`. It means something for scale-invariant
    weights alone: see :func:`scale_dependence`. Momentum changes both alike and is left out.

    Args:
        optimizer: gives each parameter's learning rate.
        named_params: a module (behind DDP or ``torch.compile``, that inside), a mapping of names to tensors,
            or (name, tensor) pairs; those that the optimizer does not hold are left out.
        steps: ``"gradient"``, ``"normalised"``, or None to tell from the optimizer's type, or a Descent's
            links; in a wrapper such as :class:`thalweg.optim.SAM`, from those of the optimizer inside.

    Returns:
        Name to rate; infinite for a weight that is zero.

    Raises:
        ValueError: the optimizer holds none of the parameters; its kind must be said.
    """
    if not hasattr(optimizer, "param_groups"):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    kind = _steps_like(optimizer) if steps is None else check_choice("steps", steps, POWERS)
    power = POWERS[kind]
    params = named(named_params)
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    held = {name: p for name, p in params.items() if id(p) in rates}
    if not held:
        raise ValueError("named_params must hold a parameter of the optimizer, got none")
    found = {}
    for name, p in held.items():
        norm = torch.linalg.vector_norm(p.detach(), dtype=torch.promote_types(p.dtype, torch.float32)).item()
        found[name] = rates[id(p)] / norm**power if norm else math.inf
    return found


@contextmanager
def _statistics_of_the_batch(model: nn.Module) -> Iterator[None]:
    """Batch normalisation in evaluation mode that has no stored statistics to use, and keeps them."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    stored = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in stored:
            norm.running_mean, norm.running_var = mean, variance


def _output(model: nn.Module, batch: Any) -> Tensor:
    # Around a caller's autocast it would keep the casts of the weight that stood here before.
    torch.clear_autocast_cache()
    output = call(model, batch)
    output = logits_of(output)
    if not isinstance(output, Tensor) or not bool(output.isfinite().all()):
        raise ValueError(f"model must return a finite tensor (or .logits), got {type(output).__name__}")
    return output.double()


@costs(3, 0, memory="one copy of the weight")
def scale_dependence(
    model: nn.Module, batch: Any, weight: str, *, stretch: float = 0.1, seed: int = 0
) -> float:
    r"""How much the outputs feel the length of one weight: 0 for a scale-invariant one.

    .. math:: \frac{\|f((1+s)\,W) - f(W)\|}{\|f(W + s\,R) - f(W)\|}

    with a random :math:`R` of the weight's norm. Below 0.05 the weight is scale-invariant for all that
    matters: a normalisation behind it takes its length away. A bias between the two leaves 0.1 to 0.5, any
    other weight gives about 1. A gain whose shifts are zero may be as invariant as a matrix.

    Args:
        model: gives a tensor, a tuple that begins with one, or something with ``.logits``; run three times in
            evaluation mode without gradients; weight and ``training`` flags are put back, also after an
            error. Batch normalisation uses the statistics of the batch, and keeps its stored ones, which
            belong to the weight at its present length.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        weight: name of a parameter of the model (behind DDP or ``torch.compile``, of that inside).
        stretch: :math:`s`, greater than 0.
        seed: of the random direction; the global random state is left alone.

    Returns:
        At least 0; infinite if the outputs feel the length and not the random move, 0 if they feel neither,
        as with a weight that is zero.

    Raises:
        ValueError: there is no such parameter; the outputs are no finite tensor (or ``.logits``).
    """
    stretch = check_positive("stretch", stretch)
    model = bare(model)
    params = dict(model.named_parameters())
    if weight not in params:
        raise ValueError(f"weight must name a parameter, got {weight!r}{nearest(weight, params)}")
    p = params[weight]
    direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = p.data
    direction = direction.to(before.device) * (before.double().norm() / direction.norm())
    with quiet(model), _statistics_of_the_batch(model):
        try:
            start = _output(model, batch)
            # Other storage, not other values: a graph that waits for its backward pass stays valid.
            p.data = before * (1 + stretch)
            longer = (_output(model, batch) - start).norm().item()
            p.data = (before.double() + stretch * direction).to(before.dtype)
            moved = (_output(model, batch) - start).norm().item()
        finally:
            p.data = before
            torch.clear_autocast_cache()
    if moved:
        return longer / moved
    return math.inf if longer else 0.0
