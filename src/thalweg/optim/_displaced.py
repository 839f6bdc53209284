"""Wrappers that take a gradient away from the weights: copies are kept, and put back bit for bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from thalweg.optim._layout import local, real
from thalweg.optim._wrapper import Wrapper


def values(tensor: Tensor) -> Tensor:
    """This rank's numbers, real and writable without autograd's notice."""
    return real(local(tensor.detach()))


def wide(tensor: Tensor) -> Tensor:
    """The same in at least float32, the precision in which moves are computed."""
    return values(tensor).to(torch.promote_types(values(tensor).dtype, torch.float32))


class Displaced(Wrapper, ABC):
    """Moves the weights before a gradient is taken and puts them back before the inner optimizer steps.

    Attributes:
        displaced: whether the weights are away: between the first call and ``step``.
    """

    first_call = ""  # the method that moves the weights, for messages

    def __init__(self, inner: Optimizer):
        super().__init__(inner)
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    @property
    def displaced(self) -> bool:
        return self._kept is not None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return True  # a skipped step must bring the weights back all the same

    def _graded(self) -> list[Tensor]:
        """The parameters that have a gradient."""
        params = [p for p in self.parameters if p.grad is not None]
        for p in params:
            assert p.grad is not None
            if p.grad.layout != torch.strided:
                raise ValueError(
                    f"sparse gradients are not supported, got one for a parameter of shape {tuple(p.shape)}: "
                    "use nn.Embedding(..., sparse=False)"
                )
        return params

    @torch.no_grad()
    def _move(self, moves: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Add to each parameter its move, a tensor of local real values; what is not finite moves nothing."""
        self._not_for_another(self.first_call)
        self._kept = []
        for p, move in moves:
            weights = values(p)
            self._kept.append((p, weights.clone()))
            weights.copy_(wide(p) + move.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
            increment_version(p)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit, and forget the displacement; does nothing if there is none."""
        for p, kept in self._kept or ():
            values(p).copy_(kept)
            increment_version(p)
        self._kept = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Put the weights back and step the inner optimizer.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss; it then
                takes all the passes itself. Should it raise, the weights are back before the error is.

        Returns:
            The first loss of ``closure``, or None without one.

        Raises:
            RuntimeError: for neither a closure nor the first call before it, and for both.
        """
        loss = None
        if closure is not None:
            if self.displaced:
                raise RuntimeError(f"step takes no closure after {self.first_call}: call it without")
            try:
                with torch.enable_grad():
                    loss = self._passes(closure)
            except BaseException:
                self.restore()
                raise
        elif not self.displaced and self._must_displace():
            raise RuntimeError(
                f"{type(self).__name__}.step() needs a closure, or {self.first_call} and a backward pass "
                "before it"
            )
        self._put_back()
        if self._overflowed():
            return loss
        self._step_inner()
        return loss

    def _gradients(self, closure: Callable[[], Any]) -> Any:
        """The loss of ``closure``, whose gradients must be the only ones: older ones are of other places.

        Raises:
            RuntimeError: if it has added its gradients to those that were there.
        """
        held = [p for p in self._graded() if p.grad is not None and values(p.grad).numel()]
        if not held:
            return closure()
        p = min(held, key=lambda p: p.numel())
        assert p.grad is not None
        # A gradient that is cleared is another tensor or zero for a while; NaN outlives all else.
        old, p.grad = p.grad, torch.full_like(p.grad, torch.nan)
        marked = p.grad
        try:
            loss = closure()
        finally:
            added = p.grad is marked and bool(values(marked).isnan().all())
            if added:
                p.grad = old
        if added:
            raise RuntimeError(
                f"the closure of {type(self).__name__}.step() must clear the gradients, but it added to "
                "older ones: to accumulate, take all the backward passes inside of the closure"
            )
        return loss

    def _put_back(self) -> None:
        """Undo the scaling of a GradScaler and the displacement."""
        scale = self.__dict__.get("grad_scale")
        if scale is not None:
            for p in self._graded():
                assert p.grad is not None
                grad = values(p.grad)
                grad.mul_((1 / scale.double()).to(grad))
        self.restore()

    def _step_inner(self, closure: Callable[[], Any] | None = None) -> Any:
        # The scaling is undone already: the inner optimizer sees plain gradients.
        return self.inner.step()

    @abstractmethod
    def _passes(self, closure: Callable[[], Any]) -> Any:
        """Take the gradients that one step needs; the weights may stay away. Gives the first loss."""

    def _must_displace(self) -> bool:
        """Whether a step without displacement would be another method's; zero gradients need none."""
        return any(p.grad is not None and bool(values(p.grad).any()) for p in self.parameters)

    def load_state_dict(self, state_dict: Any) -> None:
        """As :meth:`Wrapper.load_state_dict`; refused while the weights are away."""
        if self.displaced:
            raise RuntimeError(f"load_state_dict between {self.first_call} and step(): call restore() first")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        if self.displaced:
            raise RuntimeError(f"a copy between {self.first_call} and step(): call restore() first")
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kept = None
