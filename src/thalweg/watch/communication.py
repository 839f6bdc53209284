"""Only one of several processes looks: what it runs meanwhile must not wait for the others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CommunicationError", "alone"]

# What every collective and every message between processes runs as.
NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")


class CommunicationError(RuntimeError):
    """The model or the loss function exchanges tensors with other processes, which do not look."""


def alone() -> AbstractContextManager[Any]:
    """Within this, tensors that are sent to other processes raise instead of being sent.

    The others are in the middle of their training: they would take what a reading sends for its own, add it
    to their gradients, or wait for it for ever.

    Raises:
        CommunicationError: inside, where a collective or a message begins.
    """
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return _Alone() if several else nullcontext()


class _Alone(TorchDispatchMode):
    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "namespace", "") in NAMESPACES:
            raise CommunicationError(
                f"the model or loss_fn communicates with other processes ({func.name()}), and only one of "
                "them looks"
            )
        return func(*args, **(kwargs or {}))
