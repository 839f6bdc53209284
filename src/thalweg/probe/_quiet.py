"""Running a model only to look at it: evaluation mode, no gradient, and everything put back afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import nearest
from thalweg.probe._untouched import untouched
from thalweg.probe._wrapped import uncompiled


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, ``untouched``; each module's own ``training`` flag returns.

    Parts compiled on their own run as plain Python: a compiled part calls no hook that came after it.
    """
    # Not model.train(True) at the end: that would switch on modules which the user had frozen one by one.
    flags = [(module, module.training) for module in model.modules()]
    try:
        with untouched(model), torch.no_grad(), uncompiled():
            model.eval()
            yield
    finally:
        for module, training in flags:
            module.training = training


def call(model: nn.Module, batch: Any) -> Any:
    """``model(batch)``, with a tuple or list spread over positions and a mapping over keywords.

    Raises:
        ValueError: the model does not take so many arguments, or none of these names.
    """
    named: dict[str, Any] = dict(batch) if isinstance(batch, Mapping) else {}
    given = (
        () if isinstance(batch, Mapping) else tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    )
    try:
        return model(*given, **named)
    except TypeError as error:
        try:
            signature = inspect.signature(model.forward)
        except ValueError:  # written in C++, it has none
            raise error from None
        try:
            signature.bind(*given, **named)
        except TypeError as why:
            raise ValueError(
                f"the batch must be what {type(model).__name__} takes, without targets: a tensor, a tuple of "
                f"positional or a mapping of keyword arguments; {why}"
            ) from error
        raise


def modules_named(model: nn.Module, names: Any) -> dict[str, nn.Module]:
    """The modules called ``names``.

    Raises:
        ValueError: the model has no module of that name.
    """
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise ValueError(
                f"layers must name modules of the model, got {name!r}{nearest(str(name), known)}"
            )
    return {name: known[name] for name in names}


@contextmanager
def listening(layers: Mapping[str, nn.Module], hear: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``hear(name, output)`` whenever a layer ran; the hooks go, also after an error."""

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"layer {name!r} must return one tensor, got {type(output).__name__}")
            hear(name, output)

        return hook

    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_hook(hook_for(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
