"""The scalars that somebody's own script calls ``backward`` on, and whose gradients they became."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Differentiated"]

# An optimizer that so many backward passes in a row have not reached is not looked at until it steps again.
IDLE = 1000
# Where a backward pass reaches no optimizer that is known, others are looked for, ever less often.
SELDOM = 1000

Grads = list[tuple[Tensor | None, int]]
# On the CPU a float.
Number = float | Tensor


@dataclass(slots=True)
class Ear:
    """What has been differentiated for one optimizer since its last step.

    Attributes:
        total: sum of the scalars whose gradients are in its parameters; the last one of a closure stays.
        index, version: of a gradient that the latest pass wrote, and how often it had been written then.
        idle: passes since one that reached its parameters.
    """

    total: Number | None = None
    last: Number | None = None
    index: int = -1
    version: int = 0
    idle: int = 0

    def before(self, grads: Grads) -> Grads:
        """Forget what was differentiated for gradients that have been thrown away since; gives these."""
        if self.total is not None:
            grad, version = grads[self.index] if self.index < len(grads) else (None, 0)
            # What was written in between may have been clipped.
            if grad is None or (version != self.version and not bool(grad.any())):
                self.total = None
        return grads

    def hear(self, value: Number, before: Grads, after: Grads) -> bool:
        """Add the scalar of a pass if that wrote gradients; gives whether it did."""
        pairs = enumerate(zip(before, after, strict=True))
        index = next((at for at, (old, new) in pairs if new[0] is not None and not _same(old, new)), None)
        self.idle = 0 if index is not None else self.idle + 1
        if index is None:
            return False
        self.total = value if self.total is None else self.total + value
        self.index, self.version, self.last = index, after[index][1], self.total
        return True


Heard = list[tuple[Optimizer, Ear, Grads]]


class Differentiated:
    """Stands in for ``torch.autograd.backward``, which ``Tensor.backward`` calls, and does what that does.

    A pass is an optimizer's if it changed the gradients of its parameters, which says more than the graph: a
    checkpoint hides what is behind it, ``inputs=`` leaves parameters out, and none has to be walked. What is
    differentiated within a pass, or with ``torch.autograd.grad`` as a penalty is, is no loss.

    Args:
        unless: whether there is no need to listen.
        failed: told of an error of ours, after which nothing is heard any more.

    Attributes:
        original: torch's own function.
        spent: seconds of listening that no run has been told of.
    """

    def __init__(self, unless: Callable[[], bool], failed: Callable[[Exception], None]):
        self.original = torch.autograd.backward
        self.unless, self.failed = unless, failed
        self.spent = 0.0
        self._ears: WeakKeyDictionary[Optimizer, Ear] = WeakKeyDictionary()
        self._within = self._deaf = False
        self._unscaled: list[Number] = []
        self._wait = self._waited = 0

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within this it is heard what is differentiated, and what is scaled before that."""
        original, scaling = self.original, torch.amp.GradScaler.scale

        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> None:
            return self(*args, **kwargs)

        @functools.wraps(scaling)
        def scale(scaler: Any, outputs: Any) -> Any:
            self._scaled(scaler, outputs)
            return scaling(scaler, outputs)

        # Nothing of ours is for the compiler of somebody whose compiled function ends in a backward pass.
        torch.autograd.backward = torch.compiler.disable(backward)
        torch.amp.GradScaler.scale = torch.compiler.disable(scale)  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.autograd.backward = original
            torch.amp.GradScaler.scale = scaling  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self._within or self._deaf or self.unless():
            return self.original(*args, **kwargs)
        start = time.perf_counter()
        value, before = self._before(args, kwargs)
        self.spent += time.perf_counter() - start
        self._within = True
        try:
            self.original(*args, **kwargs)
        finally:
            self._within = False
            scaled, self._unscaled = self._unscaled, []
        start = time.perf_counter()
        if value is not None:
            self._after(scaled, value, before)
        self.spent += time.perf_counter() - start
        return None

    def taken(self, optimizer: Optimizer, closure: bool) -> Number | None:
        """The sum of what was differentiated for an optimizer since its last step.

        Args:
            closure: the step that begins has one, which has not been called yet: the last sum is the latest.
        """
        ear = self._ears.setdefault(optimizer, Ear())
        ear.idle = 0
        return ear.last if ear.total is None and closure else ear.total

    def forget(self, optimizer: Optimizer, closure: bool = False) -> None:
        """Begin anew; what came in the closure of a step is kept for the next one."""
        ear = self._ears.get(optimizer)
        if ear is not None:
            ear.total = None
            if not closure:
                ear.last = None

    def _scaled(self, scaler: Any, outputs: Any) -> None:
        """Of a pass that reaches what a GradScaler gives on, this counts and not its multiple."""
        if self._deaf or not scaler.is_enabled():
            return
        for one in outputs if isinstance(outputs, list | tuple) else (outputs,):
            if _is_scalar(one) and one.requires_grad:
                one.register_hook(_unscaling(self._unscaled_in_pass, scaler, one.detach()))

    def _unscaled_in_pass(self, value: Number) -> None:
        if self._within:
            self._unscaled.append(value)

    def _before(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Number | None, Heard]:
        try:
            value = _scalar(*args[:2], **kwargs)
            if value is None:
                return None, []
            awake = [pair for pair in self._ears.items() if pair[1].idle < IDLE]
            return value, [(optimizer, ear, ear.before(_grads(optimizer))) for optimizer, ear in awake]
        except Exception as error:
            self._fail(error)
            return None, []

    def _after(self, scaled: Sequence[Number], value: Number, before: Heard) -> None:
        try:
            for number, one in enumerate(scaled):
                value = value + one if number else one
            reached = [ear.hear(value, grads, _grads(optimizer)) for optimizer, ear, grads in before]
            if not any(reached):
                self._look_around(value)
        except Exception as error:
            self._fail(error)

    def _look_around(self, value: Number) -> None:
        """Optimizers that are not known yet and have gradients now."""
        self._waited += 1
        if self._waited <= self._wait:
            return
        self._waited, self._wait = 0, min(2 * self._wait + 1, SELDOM)
        start = time.perf_counter()
        for thing in gc.get_objects():
            # isinstance would run properties of strange objects; their type cannot lie.
            if issubclass(type(thing), Optimizer) and thing not in self._ears:
                after = _grads(thing)
                self._ears[thing] = Ear()
                if self._ears[thing].hear(value, [(None, 0)] * len(after), after):
                    self._wait = 0
        # As the search for a model it is part of beginning a run, which costs no step.
        self.spent -= time.perf_counter() - start

    def _fail(self, error: Exception) -> None:
        self._deaf = True
        self.failed(error)


def _grads(optimizer: Optimizer) -> Grads:
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    return [(None, 0) if grad is None else (grad, grad._version) for grad in grads]


def _same(old: tuple[Tensor | None, int], new: tuple[Tensor | None, int]) -> bool:
    return old[0] is new[0] and old[1] == new[1]


def _is_scalar(one: Any) -> bool:
    real = isinstance(one, Tensor) and one.is_floating_point() and not one.is_meta
    # A tensor that is spread over processes is a number to all of them at once only.
    return real and one.numel() == 1 and not hasattr(one, "device_mesh")


def _number(one: Tensor) -> Number:
    """A copy of a scalar, which the script may go on writing into; no device is waited for."""
    if one.is_cpu:
        return one.item()
    one = one.detach().reshape(())
    return one.float() if one.dtype.itemsize < 4 else one.clone()


def _scalar(tensors: Any, grad_tensors: Any = None, **others: Any) -> Number | None:
    """What is differentiated, as one number: a sum of scalars, each as often as its own gradient says."""
    grad_tensors = others.get("grad_variables") if grad_tensors is None else grad_tensors
    outputs = tensors if isinstance(tensors, list | tuple) else (tensors,)
    weights = grad_tensors if isinstance(grad_tensors, list | tuple) else (grad_tensors,) * len(outputs)
    total: Number | None = None
    for output, weight in zip(outputs, weights, strict=False):
        if not _is_scalar(output) or not (weight is None or _is_scalar(weight)):
            return None
        value = _number(output) if weight is None else _number(output) * _number(weight)
        total = value if total is None else total + value
    return total


def _unscaling(tell: Callable[[Number], None], scaler: Any, value: Tensor) -> Callable[[Tensor], None]:
    def differentiated(grad: Tensor) -> None:
        # The scale, and whatever the script has multiplied by behind it.
        tell(_number(value) * (_number(grad) / _number(scaler._scale)))

    return differentiated
