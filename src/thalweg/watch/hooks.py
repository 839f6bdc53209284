"""What watching hangs on somebody else's objects: copies, pickles and closures of theirs must not notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["Listener", "named_parameters", "with_closure"]


class Listener:
    """A forward hook that hears one model and no copy of it.

    Copying or pickling a module copies its hooks; a copied listener is deaf, so that a model that is watched
    can be saved whole, sent to another process, or averaged into a copy.
    """

    def __init__(self, model: nn.Module | None = None, hear: Callable[[Any, Any, Any], None] | None = None):
        self.model, self.hear = model, hear

    def __call__(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.hear is not None and model is self.model:
            self.hear(args, kwargs, output)

    def __reduce__(self) -> tuple[type[Listener], tuple]:
        return Listener, ()


def with_closure(args: tuple, kwargs: Mapping[str, Any], then: Callable[[], None]) -> Any:
    """New arguments for ``optimizer.step`` whose closure calls ``then`` after its first gradient.

    Gradients come into being inside the closure, after the optimizer's pre-hooks. None if there is none.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        return None
    called = False

    def watched() -> Any:
        nonlocal called
        loss = closure()
        if not called:
            called = True
            then()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": watched}
    return (args[0], watched, *args[2:]), dict(kwargs)


def named_parameters(model: nn.Module | None, held: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by their names in the model.

    Raises:
        ValueError: the model is no module, has no parameters, or has none that the optimizer holds.
    """
    if model is None:
        return {f"parameter {index}": p for index, p in enumerate(held)}
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    names = {id(p): name for name, p in model.named_parameters()}
    if not names:
        raise ValueError(f"model must have parameters, got {type(model).__name__} with none")
    if not any(id(p) in names for p in held):
        raise ValueError("optimizer must hold parameters of the model, got none of them")
    return {names.get(id(p), f"parameter {index}"): p for index, p in enumerate(held)}
