"""Running a user's model or loss once more without a trace: what a pass changes returns to what it was.

A pass draws random numbers, and may count, remember a hidden state, update a buffer in any mode, or fire
hooks that collect features. Hooks may be part of the computation (weight normalisation of the old kind,
pruning, steering) and nothing tells those from others, so they fire; what they write to is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from thalweg.probe._randomness import randomness
from thalweg.probe._reachable import HOOKS, Reachable

# Their hooks hold nothing of a training loop.
_NOBODYS = ("thalweg.", "torch.")
# Beside the model, larger tensors are data that is read.
_BESIDE = 2**20

_inside: ContextVar[frozenset[int]] = ContextVar("inside", default=frozenset())


@contextmanager
def untouched(model: nn.Module, *others: Any) -> Iterator[None]:
    """Put back afterwards, also after an error, what passes inside change of the model and of ``others``.

    That is: the global random states; every module's attributes, with lists, dictionaries, sets, queues,
    tensors and arrays in them; buffers, and frozen parameters where they are no more than the trained ones;
    the same in what functions (``others``, and the hooks of modules and parameters) close over, take from
    their globals or are methods of, there with tensors of up to 1 MB. Not: trained parameters overwritten in
    place, and what other objects hold. Within itself, on the same model, it does nothing more.

    Args:
        others: functions or modules that run beside the model, such as the loss.
    """
    outer = _inside.get()
    if id(model) in outer:
        yield
        return
    back, state = randomness(), _state(model, others)
    token = _inside.set(outer | {id(model)})
    try:
        yield
    finally:
        _inside.reset(token)
        state.back()
        back()


def _state(model: nn.Module, others: tuple[Any, ...]) -> Reachable:
    state = Reachable()
    state.note([model])
    frozen = [p for p in state.parameters if not p.requires_grad]
    if 2 * sum(p.numel() for p in frozen) <= sum(p.numel() for p in state.parameters):
        for p in frozen:
            state.tensor(p)
    hooks = [*state.hooks]
    for some in [getattr(nn.modules.module, f"_global{name}") for name in HOOKS]:
        hooks += some.values()
    for p in state.parameters:
        hooks += (p._backward_hooks or {}).values()
    users = [hook for hook in hooks if not _is_nobodys(hook)]
    state.note([*others, *users], largest=_BESIDE)
    return state


def _is_nobodys(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_NOBODYS)
