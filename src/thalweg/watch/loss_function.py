"""The user's loss function as sensors call it: what it does not stand is said once, and in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from thalweg.watch.communication import CommunicationError

__all__ = ["LossFunctionError", "checked"]

SHAPE = (
    "watch(..., loss_fn=...) must be a function loss_fn(model, batch) that takes the model and what "
    "run.log(batch=...) is given, and returns a tensor with one number, such as "
    "lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])"
)


class LossFunctionError(Exception):
    """``loss_fn(model, batch)`` failed, or gave something else than one number."""


def checked(loss_fn: Callable[..., Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """``loss_fn``, which raises a :class:`LossFunctionError` that says what it must look like."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        try:
            value = loss_fn(model, batch)
        except CommunicationError as error:
            raise LossFunctionError(str(error)) from error
        except Exception as error:
            raise LossFunctionError(f"{SHAPE}; it raised {type(error).__name__}: {error}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
            raise LossFunctionError(f"{SHAPE}; it returned {got}")
        return value.reshape(())

    return loss
