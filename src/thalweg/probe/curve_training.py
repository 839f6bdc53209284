"""A low road between two checkpoints: the bend of a quadratic Bezier curve, trained (arXiv 1802.10026)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_positive
from thalweg.probe._checkpoints import Checkpoint
from thalweg.probe._graphs import check_reachable, dense
from thalweg.probe._randomness import same_randomness
from thalweg.probe._terrain import LossOf, scalar, terrain
from thalweg.probe.cost import costs

__all__ = ["ConnectingCurve", "train_curve"]

STEPS = 300


@dataclass(frozen=True)
class ConnectingCurve:
    """A trained bend between two checkpoints.

    Attributes:
        control: the control point, a state dict for :func:`loss_curve`.
        at, losses: the t drawn at each step of its training, and the loss there.
    """

    control: dict[str, Tensor]
    at: tuple[float, ...]
    losses: tuple[float, ...]


@costs(STEPS, STEPS, memory="five copies of the weights and the activations of one batch")
def train_curve(
    loss_fn: LossOf,
    model: nn.Module,
    start: Checkpoint,
    end: Checkpoint,
    *,
    steps: int = STEPS,
    lr: float = 0.01,
    generator: torch.Generator | None = None,
) -> ConnectingCurve:
    r"""Train the control point of a Bezier curve so that the mean loss along it is low (arXiv 1802.10026).

    Adam with a learning rate that falls linearly to zero descends :math:`E_{t \sim U(0, 1)} L(\theta(t))`
    over the control point alone, one :math:`t` a step, from the midpoint of the line. Its gradient is
    :math:`2t(1-t)\,\nabla L(\theta(t))`. Measure what came of it with :func:`loss_curve`, on other data.

    Batch normalisation uses the statistics of each batch here, everything else is in evaluation mode. Frozen
    parameters and buffers stay at the midpoint. The model, ``.grad`` and the global random state are left as
    they were, also after an error.

    Args:
        loss_fn: takes the bare model, returns the scalar loss, of another minibatch at each call if you like.
        model, start, end: as in :func:`loss_line`.
        steps: gradients to spend.
        lr: first learning rate, in units of a weight a step.
        generator: draws t; by default a private one with seed 0.

    Raises:
        ValueError: a checkpoint does not fit, or the loss is no finite scalar that depends on the weights.
    """
    check_count("steps", steps)
    check_positive("lr", lr)
    generator = generator or torch.Generator().manual_seed(0)
    with (
        torch.inference_mode(False),
        terrain(loss_fn, model, (), (), False, start=start, end=end) as ground,
        same_randomness(),
    ):
        trained = {name: p for name, p in ground.params.items() if p.requires_grad}
        if not trained:
            raise ValueError("model must have parameters that require a gradient, got none")
        ground.stand(0.5, 0.5)
        # In float32 at least: small steps are lost to the rounding of half precision.
        control = {name: own.detach().to(_wide(own), copy=True) for name, own in ground.params.items()}
        control |= {name: own.clone() for name, own in ground.model.named_buffers()}
        ground.points.append(control)
        leaves = [control[name] for name in trained]
        optimizer = torch.optim.Adam(leaves, lr=lr)
        for norm in ground.norms:
            norm.train()
        drawn, losses = [], []
        for step in range(steps):
            t = torch.rand((), generator=generator, device=generator.device).item()
            ground.stand((1 - t) ** 2, t**2, 2 * t * (1 - t))
            loss = _loss(ground.loss_fn, ground.model)
            gradient = torch.autograd.grad(
                loss, list(trained.values()), allow_unused=True, materialize_grads=True
            )
            for leaf, g in zip(leaves, gradient, strict=True):
                leaf.grad = 2 * t * (1 - t) * dense(g).to(leaf)
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.step()
            drawn.append(t)
            losses.append(loss.item())
    for leaf in leaves:
        leaf.grad = None
    return ConnectingCurve(control, tuple(drawn), tuple(losses))


def _loss(loss_fn: LossOf, model: nn.Module) -> Tensor:
    with torch.enable_grad():
        loss = loss_fn(model)
        loss = loss.reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else loss
    if not math.isfinite(scalar(loss)):
        raise ValueError(f"loss_fn must return a finite loss along the curve, got {scalar(loss)}")
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise ValueError(
            "loss_fn must return a loss that requires a gradient, got one detached from the weights"
        )
    check_reachable("loss_fn", loss)
    return loss


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
