"""Gradient regularization (arXiv 2210.02720): penalise the squared norm of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from thalweg._core.checks import check_choice, check_not_negative, check_positive
from thalweg.optim._displaced import Displaced, values, wide
from thalweg.optim.second_pass import frozen_statistics

__all__ = ["GradientRegularization"]


class GradientRegularization(Displaced):
    r"""Give the inner optimizer :math:`g + \gamma D`, where :math:`D \approx H g` is half the gradient of
    :math:`\|g\|^2`.

    ==========  ================================================  ============================
    mode        :math:`D`                                         gradients a step
    ==========  ================================================  ============================
    forward     :math:`(\nabla L(w + \epsilon g) - g)/\epsilon`   two
    backward    :math:`(g - \nabla L(w - \epsilon g))/\epsilon`   two
    exact       :math:`H g`, by differentiating twice             one, and one through it
    ==========  ================================================  ============================

    Forward with :math:`\gamma = \epsilon` is SAM without normalisation; backward with both equal to the
    learning rate of gradient descent is a step down and then a step up again, beside the plain step.

    Either ``opt.step(closure)``, where the closure clears the gradients, computes the loss, calls
    ``backward`` (**not** in mode exact: there it only returns the loss) and returns the loss. Or::

        loss_fn(model(x), y).backward()       # exact: opt.backward(loss_fn(model(x), y)); opt.step()
        opt.displace()
        opt.zero_grad()
        loss_fn(model(x), y).backward()       # the same batch
        opt.step()

    After the step ``.grad`` holds :math:`g + \gamma D`. Both passes should see the same dropout masks and
    the second should not advance batch norm (``model=``, or :func:`thalweg.optim.frozen_statistics`).
    In float32 a tiny :math:`\epsilon` leaves only rounding. Mode exact sees neither DDP's averaging nor
    sharded parameters.

    Args:
        inner: the optimizer that takes the step.
        weight: :math:`\gamma`, at least 0; the penalty is :math:`\gamma\|g\|^2/2`.
        step: :math:`\epsilon`, greater than 0: how far, in units of the gradient, the second one is taken.
        mode: ``forward``, ``backward`` or ``exact``.
        model: whose running statistics the second pass of a closure leaves alone.

    Raises:
        ValueError: for an argument out of range.
    """

    first_call = "displace()"
    settings = ("weight", "step_size", "mode")
    kept_as: Mapping[str, str] = {"step": "step_size"}

    def __init__(
        self,
        inner: Optimizer,
        weight: float = 0.01,
        step: float = 0.05,
        mode: str = "forward",
        *,
        model: nn.Module | None = None,
    ):
        check_not_negative("weight", weight)
        check_positive("step", step)
        check_choice("mode", mode, ("forward", "backward", "exact"))
        super().__init__(inner)
        self.weight, self.step_size, self.mode, self.model = weight, step, mode, model
        self._first: dict[Tensor, Tensor] = {}
        self._differentiated = False

    @torch.no_grad()
    def displace(self, scale: float = 1.0) -> None:
        """Move the weights along the gradients that are there; ``step`` brings them back.

        Args:
            scale: by what the loss was multiplied, ``scaler.get_scale()`` say.

        Raises:
            RuntimeError: if the weights are away already, or in mode exact, which takes one place only.
        """
        check_positive("scale", scale)
        if self.mode == "exact":
            raise RuntimeError("mode exact is not displaced: call backward(loss) in place of loss.backward()")
        if self.displaced:
            raise RuntimeError(
                "displace() was called already: call step(), or restore() to give this step up"
            )
        self._first = {p: wide(p.grad) / scale for p in self._graded() if p.grad is not None}
        distance = self.step_size if self.mode == "forward" else -self.step_size
        self._move((p, distance * grad) for p, grad in self._first.items())

    def backward(self, loss: Tensor) -> None:
        """Mode exact: fill ``.grad`` with :math:`g + \\gamma H g` of ``loss``, which must have its graph.

        Raises:
            RuntimeError: in another mode, or if ``loss`` was differentiated before.
            ValueError: if ``loss`` is no differentiable number, or parameters are sharded.
        """
        if self.mode != "exact":
            raise RuntimeError(f"backward(loss) is for mode exact, not {self.mode}: call loss.backward()")
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(f"loss must be one number with its graph, got {_described(loss)}")
        params = [p for p in self.parameters if p.requires_grad]
        if any(isinstance(p, DTensor) for p in params):
            raise ValueError("mode exact needs whole parameters, got a DTensor: use forward or backward")
        try:
            first = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError("loss was differentiated before: in mode exact don't call backward") from error
        curved = [g for g in first if g is not None and g.requires_grad]
        second: Any = [None] * len(params)
        if curved:
            second = torch.autograd.grad(curved, params, [g.detach() for g in curved], allow_unused=True)
        for p, g, hg in zip(params, first, second, strict=True):
            if g is not None:
                p.grad = g.detach() if hg is None else g.detach() + self.weight * hg.detach()
            else:
                p.grad = None
        self._differentiated = True

    def _passes(self, closure: Callable[[], Any]) -> Any:
        if self.mode == "exact":
            loss = closure()
            self.backward(loss)
            return loss.detach()
        loss = self._gradients(closure)
        self.displace()
        with frozen_statistics(self.model) if self.model is not None else nullcontext():
            self._gradients(closure)
        return loss

    def _must_displace(self) -> bool:
        return not self._differentiated and super()._must_displace()

    def _put_back(self) -> None:
        super()._put_back()
        share = self.weight / self.step_size
        share = share if self.mode == "forward" else -share
        for p in self.parameters if self._first else ():
            if p.grad is None and p not in self._first:
                continue
            first = self._first.get(p)
            if p.grad is None:  # the loss does not depend on it there
                p.grad = torch.zeros_like(p)
            there = wide(p.grad)
            combined = torch.lerp(torch.zeros_like(there) if first is None else first, there, share)
            values(p.grad).copy_(combined)
        self._first, self._differentiated = {}, False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._first, self._differentiated = {}, False


def _described(loss: Any) -> str:
    if isinstance(loss, Tensor):
        return f"a tensor of shape {tuple(loss.shape)} with requires_grad={loss.requires_grad}"
    return type(loss).__name__
