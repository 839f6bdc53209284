"""What watching hangs on somebody else's objects: copies, pickles and closures of theirs must not notice."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._wrapped import bare

__all__ = ["Listener", "eagerly", "named_parameters", "sample", "transformed", "with_closure"]

# About so many entries of a weight tell it from what it was before.
SAMPLED = 256


class Listener:
    """A forward hook that hears one model and no copy of it, in training only.

    Copying or pickling a module copies its hooks; a copied listener is deaf, so that a model that is watched
    can be saved whole, sent to another process, or averaged into a copy. Of a pass without gradients it says
    only that there was one; a copy made by ``copy.deepcopy`` counts them.

    Attributes:
        listens: whether ``hear`` is told of passes in training.
        last: (positional, keywords, output) of a call inside somebody's compiled region, where ``hear`` would
            break the graph: what is noted is taken later with ``take``.
        copies: of the model, as far as they are known.
        again: within a call of an optimizer's closure that is not the first of its step.
    """

    again = False

    def __init__(
        self,
        model: nn.Module | None = None,
        hear: Callable[[Any, Any, Any], None] | None = None,
        evaluated: Callable[[], None] | None = None,
    ):
        self.model, self.hear, self.evaluated = model, hear, evaluated
        self.listens = True
        self.last: tuple[Any, Any, Any] | None = None
        self.copies: list[Copy] = []

    def __call__(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # Evaluation between steps must not be taken for the training batch.
        if not (model.training and torch.is_grad_enabled()):
            if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and self.evaluated:
                self.evaluated()
            return
        if torch.compiler.is_compiling():
            # Only ever written within the graph: what the trace reads, a change of it would compile again.
            if self.hear is not None and model is self.model:
                self.last = (args, kwargs, output)
        elif self.listens and self.hear is not None and model is self.model and not transformed():
            self.hear(args, kwargs, output)

    def take(self) -> None:
        """Hear what was noted inside a compiled region."""
        if self.last is not None and self.hear is not None:
            last, self.last = self.last, None
            if self.listens:
                self.hear(*last)

    def stop(self) -> None:
        """Hear no more, and let go of what was noted."""
        self.hear = self.last = self.evaluated = None

    def __reduce__(self) -> tuple[type[Listener], tuple]:
        return Listener, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Listener:
        copied = Listener()
        twin = memo.get(id(self.model))
        if self.hear is not None and isinstance(twin, nn.Module):
            self.copies = [one for one in self.copies if one.alive] + [Copy(twin)]
            copied.evaluated = self.copies[-1].count
        return copied


def transformed() -> bool:
    """Whether ``torch.func`` is at work: what is seen in ``grad`` or ``vmap`` cannot be read behind it."""
    return torch._C._are_functorch_transforms_active()


class Copy:
    """A copy of a watched model, which it does not keep alive.

    Attributes:
        passes: calls without gradients so far.
    """

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._version: int | None = None
        self.passes = 0

    def count(self) -> None:
        self.passes += 1

    @property
    def alive(self) -> bool:
        return self._module() is not None

    def averages(self, past: Iterable[Tensor]) -> bool:
        """Whether somebody other than an optimizer goes on writing into its weights what the model never had.

        Args:
            past: :func:`sample` of the model's weights, now and when they were evaluated before: a copy that
                is one of these keeps the best weights, or is a target that follows now and then.
        """
        module = self._module()
        first = None if module is None else next(module.parameters(), None)
        if first is None or first.grad is not None or first.is_inference():
            return False
        if self._version is None:
            self._version = first._version
        if first._version == self._version:
            return False
        mine = sample(first)
        if any(torch.equal(mine, one.to(mine)) for one in past):
            self._version = first._version
            return False
        return True


@torch.no_grad()
def sample(weight: Tensor) -> Tensor:
    """Some entries of a weight from all over it."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLED)].clone()


def eagerly() -> AbstractContextManager[Any]:
    """Within this, compiled models and functions run as they are written.

    A reading in evaluation mode or on other shapes would be compiled anew, and at torch's limit of that the
    training itself would run uncompiled from then on.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def with_closure(args: tuple, kwargs: Mapping[str, Any], then: Callable[[], None], listener: Listener) -> Any:
    """New arguments for ``optimizer.step`` whose closure calls ``then`` after its first gradient.

    Gradients come into being inside the closure, after the optimizer's pre-hooks. None if there is none.
    Later calls in a step are at other weights, along a line or on top of a hill: ``listener.again`` says so.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        return None
    called = False

    def watched() -> Any:
        nonlocal called
        listener.again = called
        try:
            loss = closure()
        finally:
            listener.again = False
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
    names = {id(p): name.replace("_orig_mod.", "") for name, p in bare(model).named_parameters()}
    if not names:
        raise ValueError(f"model must have parameters, got {type(model).__name__} with none")
    if not any(id(p) in names for p in held):
        raise ValueError("optimizer must hold parameters of the model, got none of them")
    return {names.get(id(p), f"parameter {index}"): p for index, p in enumerate(held)}
