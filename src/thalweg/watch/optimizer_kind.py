"""Whether an optimizer divides by the size of past gradients; it is asked, not known by its name."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

__all__ = ["innermost", "preconditions"]

# Beside eps, settings by which torch's and others' say that they divide by an average of past gradients.
AVERAGED = {"betas", "alpha", "rho", "lr_decay", "beta2_decay"}


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that makes the step, inside wrappers such as :class:`thalweg.optim.SAM`."""
    while isinstance(inner := getattr(optimizer, "inner", None), Optimizer):
        optimizer = inner
    return optimizer


def preconditions(optimizer: Optimizer) -> bool:
    """Whether it divides by the size of past gradients, entry by entry, as Adam does.

    Of a :class:`thalweg.optim.Descent` its chain says so: a link that has a preconditioner, keeps a mean
    square, or has such a link inside. Any other with a method ``preconditioner`` does, and one whose settings
    hold eps and the decay of an average.
    """
    optimizer = innermost(optimizer)
    chain = getattr(optimizer, "chain", None)
    if chain is not None:
        return any(_scales(one) for one in chain)
    settings = optimizer.defaults.keys()
    return hasattr(optimizer, "preconditioner") or ("eps" in settings and bool(AVERAGED & settings))


def _scales(link: Any) -> bool:
    own = set(getattr(link, "slots", ())) - set(getattr(link, "borrows", ()))
    if getattr(link, "precondition", None) is not None or "square" in own:
        return True
    inside = getattr(link, "arguments", {}).values()
    return any(_scales(one) for one in inside if hasattr(one, "slots"))
