"""The Hessian of any loss as an operator: products with a vector by double backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._graphs import check_reachable, dense
from thalweg.probe._randomness import same_randomness
from thalweg.probe._second_derivatives import Formulas, differentiable_again, named_where_missing
from thalweg.probe._wrapped import uncompiled
from thalweg.probe.cost import costs

__all__ = ["CurvatureOperator", "hvp_operator"]


class CurvatureOperator(NamedTuple):
    """A symmetric matrix over all parameters, known by its products.

    Attributes:
        matvec: flat vector of shape (n,) to flat vector of shape (n,); one product with the matrix.
        n: number of parameters, in the order of ``params``, each flattened.
        like: empty tensor with the device and type of the vectors (float32 at least).
        shapes: of each parameter, so that a flat vector can be split.
    """

    matvec: Callable[[Tensor], Tensor]
    n: int
    like: Tensor
    shapes: tuple[torch.Size, ...]


def check_operator(operator: CurvatureOperator) -> None:
    """Refuse what is no operator, such as a model or a loss function."""
    if not isinstance(operator, CurvatureOperator):
        raise ValueError(
            "operator must be a CurvatureOperator, as hvp_operator(loss_fn, params) returns, "
            f"got {type(operator).__name__}"
        )


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
    return torch.cat([dense(t.detach()).reshape(-1).to(like) for t in tensors])


@contextmanager
def in_parts() -> Iterator[None]:
    """Nothing fused or compiled runs, neither now nor where a checkpointed part is computed anew."""
    # Neither has a second derivative; the mathematical form of attention is made of parts that do.
    parts = torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH), uncompiled(), Formulas()
    with named_where_missing(), parts[0], parts[1], parts[2], parts[3]:
        yield


@contextmanager
def twice_differentiable(params: list[Tensor]) -> Iterator[None]:
    """For a forward pass of which second derivatives are wanted; the random states return afterwards."""
    with same_randomness(), in_parts(), torch.enable_grad():
        yield


def checked_loss(loss: Tensor) -> Tensor:
    """``loss`` as a 0-d tensor, if it is a finite scalar."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return a scalar tensor, got {got}")
    if not bool(loss.isfinite()):
        raise NotFiniteError(f"loss_fn must return a finite loss, got {loss.item()}")
    return loss.reshape(())


def empty_like(params: list[Tensor]) -> Tensor:
    """Empty, on the device of the first parameter, in the widest of their types and at least float32."""
    dtype = torch.float32
    for p in params:
        dtype = torch.promote_types(dtype, p.dtype)
    return torch.empty(0, dtype=dtype, device=params[0].device)


def split(vector: Tensor, shapes: tuple[torch.Size, ...]) -> list[Tensor]:
    """A flat vector as one tensor a parameter.

    Raises:
        ValueError: it is not flat, or has another length.
    """
    n = sum(shape.numel() for shape in shapes)
    if vector.shape != (n,):
        raise ValueError(f"vector must have shape ({n},), got {tuple(vector.shape)}")
    pieces = vector.detach().split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


@costs(1, 1, memory="the graph of one gradient (about 2.5 times a backward pass), kept with the operator")
def hvp_operator(loss_fn: Callable[[], Tensor], params: Iterable[Tensor]) -> CurvatureOperator:
    """Products with the Hessian of ``loss_fn()`` with respect to ``params``.

    The loss is computed once and its gradient's graph is kept, so that every product sees the same
    function: one dropout mask, one batch. The graph lives as long as ``matvec`` does; change a parameter in
    place and further products are refused by autograd. Attention runs under the mathematical kernel, and
    what ``torch.compile`` made runs uncompiled: neither has a second derivative otherwise.
    ``.grad`` and torch's random state stay as they were. What else a forward pass changes (the running
    statistics of batch normalisation in training mode) is changed by ``loss_fn`` once.

    Args:
        loss_fn: no argument, returns the scalar loss.
        params: distinct floating-point tensors; those that the loss does not depend on get zero rows.

    Raises:
        ValueError: ``params`` is empty or holds a tensor that is frozen, complex or repeated; the loss is not
            scalar, not finite, or does not require a gradient; something in it has no second derivative; it
            checkpoints activations by reentrant autograd (``use_reentrant=False`` works); a vector has the
            wrong shape.
    """
    if not callable(loss_fn):
        raise ValueError(
            "loss_fn must be a function without arguments that returns the loss, "
            f"got {type(loss_fn).__name__}"
        )
    listed = checked_params(params)
    like = empty_like(listed)
    with twice_differentiable(listed):
        loss = checked_loss(loss_fn())
        if not loss.requires_grad:
            raise ValueError(
                "loss_fn must return a loss that requires a gradient, got one detached from params"
            )
        check_reachable("loss_fn", loss)
        # allow_unused with materialize_grads: a parameter that the loss does not use has zero curvature.
        with differentiable_again("loss_fn", loss):
            gradient = torch.autograd.grad(
                loss, listed, create_graph=True, allow_unused=True, materialize_grads=True
            )
    # A gradient entry that does not depend on the parameters (a linear term) has no graph and no curvature.
    curved = [index for index, g in enumerate(gradient) if g.requires_grad]
    shapes = tuple(p.shape for p in listed)
    n = sum(shape.numel() for shape in shapes)

    def matvec(vector: Tensor) -> Tensor:
        pieces = split(vector, shapes)
        if not curved:
            return like.new_zeros(n)
        with in_parts():
            products = torch.autograd.grad(
                [gradient[index] for index in curved],
                listed,
                grad_outputs=[pieces[index].to(gradient[index]) for index in curved],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return flatten(products, like)

    return CurvatureOperator(matvec, n, like, shapes)
