"""The Hessian of any loss as an operator: products with a vector by double backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.probe.cost import costs

__all__ = ["HvpOperator", "hvp_operator"]


class HvpOperator(NamedTuple):
    """A symmetric matrix known by its products.

    Attributes:
        matvec: flat vector of shape (n,) to flat vector of shape (n,); one Hessian-vector product.
        n: number of parameters, in the order of ``params``, each flattened.
        like: empty tensor with the device and type of the vectors (float32 at least).
    """

    matvec: Callable[[Tensor], Tensor]
    n: int
    like: Tensor


def checked_params(params: Iterable[Tensor]) -> list[Tensor]:
    """``params`` as a list of distinct real tensors that require a gradient."""
    listed = [params] if isinstance(params, Tensor) else list(params)
    if not listed:
        raise ValueError("params must hold at least one tensor, got none")
    for index, p in enumerate(listed):
        if not isinstance(p, Tensor) or not p.is_floating_point():
            kind = p.dtype if isinstance(p, Tensor) else type(p).__name__
            raise ValueError(f"params[{index}] must be a real floating-point tensor, got {kind}")
        if not p.requires_grad:
            raise ValueError(f"params[{index}] must require a gradient; leave frozen tensors out of params")
    if len({id(p) for p in listed}) < len(listed):
        raise ValueError("params must hold every tensor once, got one of them twice")
    return listed


def flatten(tensors: Iterable[Tensor], like: Tensor) -> Tensor:
    """The entries of all tensors in one vector with the device and type of ``like``."""
    return torch.cat([t.detach().reshape(-1).to(like) for t in tensors])


def _loss_and_gradient(loss_fn: Callable[[], Tensor], params: list[Tensor]) -> tuple[Tensor, ...]:
    first = params[0].device
    devices = sorted({p.get_device() for p in params if p.device.type == first.type and first.type != "cpu"})
    kind = first.type if first.type != "cpu" else "cuda"
    # Fused attention kernels have no second derivative; the mathematical form is made of parts that do.
    with (
        torch.random.fork_rng(devices=devices, device_type=kind),
        sdpa_kernel(SDPBackend.MATH),
        torch.enable_grad(),
    ):
        loss = loss_fn()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return a scalar tensor, got {got}")
        if not loss.requires_grad:
            raise ValueError(
                "loss_fn must return a loss that requires a gradient, got one detached from params"
            )
        if not bool(loss.isfinite()):
            raise ValueError(f"loss_fn must return a finite loss, got {loss.item()}")
        # allow_unused with materialize_grads: a parameter that the loss does not use has zero curvature.
        return torch.autograd.grad(
            loss.reshape(()), params, create_graph=True, allow_unused=True, materialize_grads=True
        )


@costs(1, 1, memory="the graph of one gradient (about 2.5 times a backward pass), kept with the operator")
def hvp_operator(loss_fn: Callable[[], Tensor], params: Iterable[Tensor]) -> HvpOperator:
    """Products with the Hessian of ``loss_fn()`` with respect to ``params``.

    The loss is computed once and its gradient's graph is kept, so that every product sees the same
    function: one dropout mask, one batch. The graph lives as long as ``matvec`` does; change a parameter in
    place and further products are refused by autograd. Attention runs under the mathematical kernel.
    ``.grad`` and torch's random state stay as they were. What else a forward pass changes (the running
    statistics of batch normalisation in training mode) is changed by ``loss_fn`` once.

    Args:
        loss_fn: no argument, returns the scalar loss.
        params: distinct floating-point tensors; those that the loss does not depend on get zero rows.

    Raises:
        ValueError: ``params`` is empty or holds a tensor that is frozen, complex or repeated; the loss is not
            scalar, not finite, or does not require a gradient; a vector has the wrong shape.
    """
    listed = checked_params(params)
    dtype = torch.float32
    for p in listed:
        dtype = torch.promote_types(dtype, p.dtype)
    like = torch.empty(0, dtype=dtype, device=listed[0].device)
    gradient = _loss_and_gradient(loss_fn, listed)
    # A gradient entry that does not depend on the parameters (a linear term) has no graph and no curvature.
    curved = [index for index, g in enumerate(gradient) if g.requires_grad]
    sizes = [p.numel() for p in listed]
    n = sum(sizes)

    def matvec(vector: Tensor) -> Tensor:
        if vector.shape != (n,):
            raise ValueError(f"vector must have shape ({n},), got {tuple(vector.shape)}")
        if not curved:
            return torch.zeros(n, dtype=dtype, device=like.device)
        pieces = vector.detach().split(sizes)
        products = torch.autograd.grad(
            [gradient[index] for index in curved],
            listed,
            grad_outputs=[pieces[index].view_as(listed[index]).to(gradient[index]) for index in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return flatten(products, like)

    return HvpOperator(matvec, n, like)
