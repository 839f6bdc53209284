"""Gradients without backpropagation (arXiv 2202.08587): a random direction times the slope along it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thalweg._core.checks import check_choice, check_count
from thalweg._core.random_states import random_states, set_random_states
from thalweg.credit._forward_pass import ForwardPass, LossFn

__all__ = ["directional_derivative", "forward_gradient", "forward_gradient_variance"]

DISTRIBUTIONS = ("gaussian", "rademacher")


def _check_trainable(forward: ForwardPass) -> None:
    if not forward.parameters:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    for name, p in forward.parameters.items():
        if isinstance(p, DTensor):
            raise ValueError(f"parameter {name!r} must be whole, got a sharded one")
        if not p.is_floating_point():
            raise ValueError(f"parameter {name!r} must be real and of floating point, got {p.dtype}")
        if p.is_meta:
            raise ValueError(f"parameter {name!r} must hold numbers, got one on the meta device")


def _check_tangents(name: str, tangents: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(tangents, Mapping) or tangents.keys() != parameters.keys():
        got = sorted(map(str, tangents)) if isinstance(tangents, Mapping) else type(tangents).__name__
        raise ValueError(f"{name} must map {sorted(parameters)} to tensors, got {got}")
    for key, p in parameters.items():
        tangent = tangents[key]
        if not isinstance(tangent, Tensor) or tangent.shape != p.shape:
            shape = tuple(tangent.shape) if isinstance(tangent, Tensor) else type(tangent).__name__
            raise ValueError(f"{name}[{key!r}] must have shape {tuple(p.shape)}, got {shape}")
    return {key: tangents[key].detach().to(p) for key, p in parameters.items()}


def _draw(p: Tensor, distribution: str, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else p.device
    wide = torch.promote_types(p.dtype, torch.float32)
    if distribution == "gaussian":
        drawn = torch.randn(p.shape, dtype=wide, device=device, generator=generator)
    else:
        drawn = torch.randint(2, p.shape, dtype=wide, device=device, generator=generator) * 2 - 1
    # A tangent has its parameter's dtype; what rounding leaves of it is what the slope is multiplied with.
    return drawn.to(p)


def directional_derivative(
    model: nn.Module, batch: Any, loss_fn: LossFn, tangents: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    r"""The loss and :math:`\nabla L \cdot v`, in one forward pass that stores no activations.

    Args:
        model: in the mode in which it is; its parameters, ``.grad`` and buffers stay as they are.
        batch: anything that ``loss_fn`` takes.
        loss_fn: ``loss_fn(model, batch)`` gives one real number, and writes to no tensor from outside.
        tangents: name of each parameter that requires a gradient, to a tensor of its shape. A tied
            parameter has its first name only.

    Returns:
        loss and derivative, 0-d, in the loss's dtype.

    Raises:
        ValueError: the loss is not one real number; a tangent is missing or has another shape; a parameter
            is complex, sharded or on the meta device.
        NotImplementedError: an operation of the model has no forward-mode rule in torch.
    """
    forward = ForwardPass(model, batch, loss_fn)
    _check_trainable(forward)
    return forward(_check_tangents("tangents", tangents, forward.parameters))


def forward_gradient(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    *,
    directions: int | Sequence[Mapping[str, Tensor]] = 1,
    distribution: str = "gaussian",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Add an unbiased estimate of the gradient to ``.grad``, without a backward pass (arXiv 2202.08587).

    .. math:: \hat g = \frac1K \sum_{k=1}^K (\nabla L \cdot v_k)\, v_k, \qquad E[v v^\top] = I

    In place of ``loss = loss_fn(model, batch); loss.backward()``::

        optimizer.zero_grad()
        loss = credit.forward_gradient(model, batch, loss_fn, directions=16)
        optimizer.step()

    Like ``backward`` it adds to a ``.grad`` that is there, and leaves parameters that require no gradient
    alone. Buffers such as running statistics move as in **one** ordinary forward pass, and so does torch's
    random stream, apart from tangents drawn from it; all directions see the same dropout masks. Unlike
    ``backward``, a parameter that the loss does not depend on gets zero in expectation, not None. The
    variance grows with the number of parameters (:func:`forward_gradient_variance`): a learning rate tuned
    for backpropagation diverges, and should fall about as :math:`K/(K+p+1)`. Nothing is averaged over
    ranks. On an error nothing has changed, but for the random stream.

    Args:
        model: any module.
        batch: anything that ``loss_fn`` takes.
        loss_fn: ``loss_fn(model, batch)`` gives one real number, and writes to no tensor from outside.
        directions: :math:`K`, forward passes to average; or the tangents themselves, as in
            :func:`directional_derivative`.
        distribution: of the entries of :math:`v`, ``gaussian`` or ``rademacher`` (1 or -1).
        generator: draws the tangents, so that dropout masks are those of a backward pass with the same seed
            (not behind attention, whose fused kernel lays its output out differently). None for torch's
            global stream.

    Returns:
        the loss, 0-d, detached.

    Raises:
        ValueError: as in :func:`directional_derivative`; ``directions`` or ``distribution`` are out of range.
        NotImplementedError: an operation of the model has no forward-mode rule in torch.
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    forward = ForwardPass(model, batch, loss_fn)
    _check_trainable(forward)
    given: list[dict[str, Tensor]] | None = None
    if isinstance(directions, Sequence) and not isinstance(directions, str) and directions:
        given = [
            _check_tangents(f"directions[{index}]", one, forward.parameters)
            for index, one in enumerate(directions)
        ]
    count = check_count("directions", directions) if given is None else len(given)

    def draws() -> Iterator[dict[str, Tensor]]:
        for _ in range(count):
            yield {name: _draw(p, distribution, generator) for name, p in forward.parameters.items()}

    total = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in forward.parameters.items()
    }
    masks: dict[str, Tensor] | None = None
    after: dict[str, Tensor] = {}
    loss = torch.empty(())
    with torch.no_grad():
        for tangents in draws() if given is None else given:
            here = random_states(forward.parameters.values())
            if masks is None:
                masks = here
                loss, slope = forward(tangents)
                after = forward.buffers
            else:
                # Every direction differentiates the same function, with the same dropout masks.
                set_random_states(masks)
                loss, slope = forward(tangents)
                set_random_states(here)
            for name, tangent in tangents.items():
                wide = total[name]
                wide.add_(tangent.to(wide.dtype) * (slope.to(wide) / count))
        for name, p in forward.parameters.items():
            p.grad = total[name].to(p.dtype) if p.grad is None else p.grad.add_(total[name])
    forward.advance(after)
    return loss


def forward_gradient_variance(parameters: int, directions: int = 1, distribution: str = "gaussian") -> float:
    r"""The estimate's variance, relative to the gradient: :math:`E\|\hat g - g\|^2 / \|g\|^2`.

    :math:`(p+1)/K` for gaussian and :math:`(p-1)/K` for rademacher tangents, whatever the loss. The whole
    covariance is :math:`(\|g\|^2 I + g g^\top)/K`, less :math:`2\,\mathrm{diag}(g^2)/K` for rademacher.

    Args:
        parameters: :math:`p`, how many numbers require a gradient, at least 1.
        directions: :math:`K`, at least 1.
        distribution: ``gaussian`` or ``rademacher``.

    Raises:
        ValueError: an argument is out of range.
    """
    check_count("parameters", parameters)
    check_count("directions", directions)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    return (parameters + (1 if distribution == "gaussian" else -1)) / directions
