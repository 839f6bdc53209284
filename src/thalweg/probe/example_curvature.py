r"""The curvature of single examples, as inner products of their Gauss-Newton factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.precision import without_autocast
from thalweg.probe._batches import take
from thalweg.probe._example_batch import count
from thalweg.probe._graphs import check_reachable, dense
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs
from thalweg.probe.operator import checked_loss, twice_differentiable

__all__ = ["CurvatureGram", "curvature_gram"]


@dataclass(frozen=True)
class CurvatureGram:
    r"""What SGD's noise needs of n examples with Gauss-Newton matrices :math:`H_i = F_i^\top F_i`.

    Attributes:
        blocks: :math:`F_i F_j^\top`, float64, shape (n, k, n, k), k being the number of outputs.
        losses: loss of each example, float64, shape (n,).
    """

    blocks: Tensor
    losses: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        r"""Nonzero eigenvalues of :math:`H = \frac1n\sum_i H_i`, falling, with zeros up to n k."""
        n, k = self.blocks.shape[:2]
        return torch.linalg.eigvalsh(self.blocks.reshape(n * k, n * k)).flip(0).clamp_min(0) / n

    @property
    def alike(self) -> Tensor:
        r""":math:`\operatorname{tr} H_i H_j`, shape (n, n); its mean is :math:`\|H\|_F^2`."""
        return self.blocks.square().sum((1, 3))

    @property
    def trace(self) -> float:
        """Trace of H."""
        return self.blocks.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(-1).mean().item()


@costs(256, 2560, memory="one parameter copy an output and example")
def curvature_gram(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Any], Tensor],
    inputs: Any,
    targets: Tensor,
) -> CurvatureGram:
    r"""Per-example curvature of ``loss_fn(model(inputs), targets)``, a mean over examples.

    The factors are :math:`F_i = A_i^{1/2} J_i` with the Jacobian of the example's outputs and the Hessian
    :math:`A_i` of its loss with respect to them. Examples go through the model one by one in evaluation mode,
    so any model will do; take a sub-sample of some hundred. Random state, ``.grad`` and modes stay as they
    were. The declared cost is that of 256 examples with 10 outputs.

    Args:
        model: gives the outputs of one example, with their leading dimension of 1, as a tensor, as
            ``.logits`` or first in a tuple; parameters that require a gradient count. Behind DDP or
            ``torch.compile`` the module itself is run.
        loss_fn: (outputs, targets) of one example, with its leading dimension of 1, to a scalar, convex in
            the outputs; its mean over the examples is the loss.
        inputs: the model's: a tensor, a tuple of positional or a mapping of keyword arguments.
        targets: of the n examples, along the first dimension of these and of ``inputs``.

    Raises:
        ValueError: there is no example, the numbers of inputs and targets differ, the model has no parameter
            that requires a gradient, gives no tensor or checkpoints its activations by reentrant autograd, or
            a loss is not a finite scalar.
    """
    examples = count(inputs, "inputs")
    if examples != len(targets):
        raise ValueError(
            f"targets must be as many as inputs and at least one, got {len(targets)} for {examples} inputs"
        )
    model = bare(model)
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    factors, losses = [], []
    with quiet(model), twice_differentiable(params):
        for index in range(examples):
            one = slice(index, index + 1)
            outputs = _outputs(model, take(inputs, one, examples))
            leaf = outputs.detach().requires_grad_()
            loss = checked_loss(loss_fn(leaf, targets[one]))
            losses.append(loss.detach().double())
            rows = [
                torch.autograd.grad(
                    outputs, params, root.view_as(outputs), retain_graph=True, allow_unused=True
                )
                for root in _root_of_hessian(loss, leaf)
            ]
            factors.append(torch.stack([_flat(row, params) for row in rows]))
    n, k = len(factors), len(factors[0])
    stacked = torch.cat(factors)
    # In float32 at least: half precision would round the sums, and the Gram matrix had negative eigenvalues.
    stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
    with without_autocast():
        inner = stacked @ stacked.T
    return CurvatureGram(inner.double().view(n, k, n, k), torch.stack(losses))


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    outputs = call(model, inputs)
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return one tensor, or .logits, got {type(outputs).__name__}")
    check_reachable("model", outputs)
    return outputs


def _root_of_hessian(loss: Tensor, leaf: Tensor) -> Tensor:
    """Rows whose outer products sum to the Hessian of ``loss`` by ``leaf``, shape (outputs, outputs)."""
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
    count = leaf.numel()
    if not slope.requires_grad:
        return leaf.new_zeros(count, count)
    units = torch.eye(count).to(leaf).view(count, *leaf.shape)
    rows = [torch.autograd.grad(slope, leaf, unit, retain_graph=True)[0].flatten() for unit in units]
    values, vectors = torch.linalg.eigh(torch.stack(rows).double())
    return (values.clamp_min(0).sqrt()[:, None] * vectors.T).to(leaf)


def _flat(gradients: Sequence[Tensor | None], params: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else dense(g).flatten()
            for g, p in zip(gradients, params, strict=True)
        ]
    )
