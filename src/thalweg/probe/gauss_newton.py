r"""The generalised Gauss-Newton matrix as an operator: curvature of the loss through the outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from thalweg.probe._graphs import check_reachable
from thalweg.probe._second_derivatives import differentiable_again
from thalweg.probe.cost import costs
from thalweg.probe.operator import (
    CurvatureOperator,
    checked_loss,
    checked_params,
    empty_like,
    flatten,
    in_parts,
    split,
    twice_differentiable,
)

__all__ = ["ggn_operator"]


@costs(1, 1, memory="the graph of one gradient, as for hvp_operator, kept with the operator")
def ggn_operator(
    output_fn: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor], params: Iterable[Tensor]
) -> CurvatureOperator:
    r"""Products with :math:`J^\top \nabla^2\ell\, J`, the Gauss-Newton matrix of ``loss_fn(output_fn())``.

    :math:`J` is the Jacobian of the outputs with respect to ``params`` and :math:`\nabla^2\ell` the Hessian
    of the loss with respect to the outputs. For a loss that is convex in the outputs (cross-entropy, squared
    error) the matrix has no negative eigenvalue, and it equals the Hessian where every example is fitted
    exactly; for cross-entropy it is the Fisher information.

    The outputs are computed once, as in :func:`hvp_operator`, of which the rest is also true.

    Args:
        output_fn: no argument, returns the model's outputs, any shape.
        loss_fn: outputs to scalar loss; must not use ``params`` itself.
        params: distinct floating-point tensors; those that the outputs do not depend on get zero rows.

    Raises:
        ValueError: ``params`` is empty or holds a tensor that is frozen, complex or repeated; the outputs are
            no floating-point tensor or do not require a gradient; the loss is not a finite scalar, or does
            not depend on the outputs; a vector has the wrong shape.
    """
    listed = checked_params(params)
    like = empty_like(listed)
    with twice_differentiable(listed):
        outputs = output_fn()
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            got = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"output_fn must return one floating-point tensor, got {got}")
        if not outputs.requires_grad:
            raise ValueError(
                "output_fn must return outputs that require a gradient, got some detached from params"
            )
        check_reachable("output_fn", outputs)
        leaf = outputs.detach().requires_grad_()
        loss = checked_loss(loss_fn(leaf))
        if not loss.requires_grad:
            raise ValueError("loss_fn must return a loss that depends on the outputs, got one that does not")
        with differentiable_again("loss_fn", loss):
            (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        # J v is the derivative, along v, of the linear map from u to J^T u: no forward-mode rule is needed.
        probe = torch.zeros_like(outputs, requires_grad=True)
        with differentiable_again("output_fn", outputs):
            pulled = torch.autograd.grad(
                outputs, listed, probe, create_graph=True, allow_unused=True, materialize_grads=True
            )
    reached = [index for index, g in enumerate(pulled) if g.requires_grad]
    shapes = tuple(p.shape for p in listed)
    n = sum(shape.numel() for shape in shapes)

    def matvec(vector: Tensor) -> Tensor:
        pieces = split(vector, shapes)
        if not slope.requires_grad:
            return like.new_zeros(n)
        directions = [pieces[index].to(pulled[index]) for index in reached]
        with in_parts():
            (pushed,) = torch.autograd.grad(
                [pulled[i] for i in reached], probe, directions, retain_graph=True
            )
            (curved,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
            products = torch.autograd.grad(
                outputs, listed, curved, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return flatten(products, like)

    return CurvatureOperator(matvec, n, like, shapes)
