"""SAM (arXiv 2010.01412) and ASAM (2102.11600): step along the gradient of a point uphill."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg._core.checks import check_not_negative, check_positive
from thalweg._core.random_states import random_states, set_random_states
from thalweg.optim._displaced import Displaced, values, wide
from thalweg.optim._norm import total_norm
from thalweg.optim.second_pass import frozen_statistics

__all__ = ["SAM"]


class SAM(Displaced):
    r"""Give the inner optimizer the gradient at :math:`w + e` for its step from :math:`w`.

    .. math:: e = \rho\, T^2 g / \|T g\|, \qquad T = 1, \text{ or } |w| + \eta \text{ if adaptive}

    With ``normalized=False``, :math:`e = \rho T^2 g`, the form that theory prefers: with learning rate
    :math:`\alpha` a direction of curvature :math:`\lambda` is then stable while
    :math:`\alpha\lambda(1 + \rho\lambda) \le 2` (arXiv 2302.08692).

    Two gradients a step, and one copy of the weights. Either ``opt.step(closure)``, or::

        loss_fn(model(x), y).backward()
        opt.ascend()
        opt.zero_grad()
        loss_fn(model(x), y).backward()
        opt.step()

    Gradients may be accumulated in each half. A zero gradient moves nothing; one that is not finite moves
    nothing either, and the second pass is taken where the weights are. The norm is one over all parameters
    and shards; under DDP it is that of the averaged gradient, so that all ranks look uphill alike. With a
    ``GradScaler``, scale both losses and call ``scaler.step(opt)``: a skipped step still brings the weights
    back. What hangs on the step and reads weights belongs on ``inner``: there they are back already.

    Args:
        inner: the optimizer that takes the step.
        radius: :math:`\rho`, at least 0; may be changed between steps.
        adaptive: ASAM: relative to the size of each weight. Radii are then 10 to 100 times larger.
        normalized: divide by the norm.
        floor: :math:`\eta` of ASAM, at least 0, which lets zero weights move.
        model: whose running statistics the second pass of a closure leaves alone (see
            :func:`thalweg.optim.frozen_statistics`).
        same_masks: the second pass of a closure draws the random numbers (dropout masks) of the first.

    Raises:
        ValueError: for an argument out of range.
    """

    first_call = "ascend()"
    settings = ("radius", "adaptive", "normalized", "floor", "same_masks")

    def __init__(
        self,
        inner: Optimizer,
        radius: float = 0.05,
        adaptive: bool = False,
        normalized: bool = True,
        *,
        floor: float = 0.01,
        model: nn.Module | None = None,
        same_masks: bool = False,
    ):
        check_not_negative("radius", radius)
        check_not_negative("floor", floor)
        super().__init__(inner)
        self.radius, self.adaptive, self.normalized, self.floor = radius, adaptive, normalized, floor
        self.model, self.same_masks = model, same_masks

    @torch.no_grad()
    def ascend(self, scale: float = 1.0) -> None:
        """Move the weights uphill along the gradients that are there; ``step`` brings them back.

        Args:
            scale: by what the loss was multiplied, ``scaler.get_scale()`` say; of no effect if normalized.

        Raises:
            RuntimeError: if the weights are away already.
        """
        check_positive("scale", scale)
        if self.displaced:
            raise RuntimeError("ascend() was called already: call step(), or restore() to give this step up")
        params = self._graded()
        length: Any = self.radius / scale
        if self.normalized:
            norm = total_norm((p, self._stretched(p)) for p in params)
            length = torch.where(norm.isfinite() & (norm > 0), self.radius / norm, 0.0)
        self._move((p, self._stretch(p, self._stretched(p)) * _like(length, p)) for p in params)

    def edge(self, limit: float) -> float:
        r"""The sharpness above which a quadratic diverges, of the inner optimizer's ``limit`` :math:`L`.

        The step sees :math:`\lambda(1+\rho\lambda)` for a curvature :math:`\lambda`, which is at most L up to

        .. math:: (\sqrt{1 + 4\rho L} - 1) / 2\rho

        Raises:
            ValueError: normalized or adaptive, where it moves with gradient or weights; or an inner optimizer
                that preconditions, whose P H (1 + rho H) is no function of P H.
        """
        if (self.normalized or self.adaptive) and self.radius:
            raise ValueError("SAM must have normalized=False and adaptive=False to have a limit of stability")
        links = getattr(self.inner, "links", ())
        plain = bool(links) or isinstance(self.inner, torch.optim.SGD)
        if not plain or any(one.transform.precondition for one in links):
            kind = type(self.inner).__name__
            raise ValueError(f"inner must be SGD or a chain that does not precondition, got SAM of {kind}")
        return 2 * limit / (1 + math.sqrt(1 + 4 * self.radius * limit)) if limit < math.inf else limit

    def _stretched(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        return self._stretch(p, wide(p.grad))

    def _stretch(self, p: Tensor, value: Tensor) -> Tensor:
        return value * (wide(p).abs() + self.floor) if self.adaptive else value

    def _passes(self, closure: Callable[[], Any]) -> Any:
        before = random_states(self.parameters) if self.same_masks else {}
        loss = self._gradients(closure)
        self.ascend()
        set_random_states(before)
        with frozen_statistics(self.model) if self.model is not None else nullcontext():
            self._gradients(closure)
        return loss


def _like(length: Any, p: Tensor) -> Any:
    return length.to(values(p).device) if isinstance(length, Tensor) else length
