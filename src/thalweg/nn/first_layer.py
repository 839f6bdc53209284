"""TrAct (arXiv 2410.23970): the first layer's weights follow a gradient step of its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg._core.checks import check_positive
from thalweg.nn._forward_mode import in_forward_mode
from thalweg.nn._full_precision import full_precision

__all__ = ["TrAct", "TrActConv2d", "TrActLinear"]


def _fitted(rows: Tensor, grad: Tensor, ridge: float) -> Tensor:
    """G^T X (X^T X / b + ridge)^-1 for X (..., b, n) and G (..., b, m), by the smaller of two systems."""
    wide = torch.promote_types(torch.promote_types(rows.dtype, grad.dtype), torch.float32)
    count, size = rows.shape[-2:]
    with full_precision(rows):
        x, g = rows.to(wide), grad.to(wide)
        small = size <= count
        gram = (x.mT @ x if small else x @ x.mT) / max(1, count)
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
        # Unchecked: where a run has diverged the answer is NaN, as any layer's would be.
        factor = torch.linalg.cholesky_ex(gram).L
        if small:
            return torch.cholesky_solve(x.mT @ g, factor).mT
        return torch.cholesky_solve(g, factor).mT @ x


class _Linear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, ridge: float) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.ridge = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        to_input = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = (flat @ weight.to(grad.dtype)).view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = _fitted(x.reshape(-1, x.shape[-1]), flat, ctx.ridge).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = flat.sum(0).to(weight.dtype)
        return to_input, to_weight, to_bias, None


class _Conv2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        ridge: float,
    ) -> Tensor:
        return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.ridge = inputs
        ctx.biases = None if bias is None else [len(bias)]
        ctx.save_for_backward(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        shape = ctx.stride, ctx.padding, ctx.dilation
        needed = [ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]]
        like = (x.to(grad.dtype), weight.to(grad.dtype))
        to_input = to_weight = to_bias = None
        if any(needed):
            to_input, _, to_bias = torch.ops.aten.convolution_backward(
                grad, *like, ctx.biases, *shape, False, [0, 0], ctx.groups, needed
            )
        if ctx.needs_input_grad[1]:
            stride, padding, dilation = shape
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            patches = functional.unfold(wide, weight.shape[2:], dilation, padding, stride)
            # (groups, images x positions, numbers of a patch) and (..., channels): every group its own fit.
            x_rows, g_rows = (
                t.unflatten(1, (ctx.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
                for t in (patches, grad.flatten(2))
            )
            to_weight = _fitted(x_rows, g_rows, ctx.ridge).reshape(weight.shape).to(weight.dtype)
        to_input = None if to_input is None else to_input.to(x.dtype)
        to_bias = None if to_bias is None else to_bias.to(weight.dtype)
        return to_input, to_weight, to_bias, None, None, None, None, None


class TrAct(nn.Module):
    r"""What :class:`TrActLinear` and :class:`TrActConv2d` have in common (TrAct, arXiv 2410.23970).

    Output, bias gradient and input gradient are those of the plain layer. With X the input as b rows of n
    numbers (for a convolution one row a patch) and G the gradient that arrives at its outputs, the weight
    gets

    .. math:: G^\top X \left(\tfrac1b X^\top X + \lambda I\right)^{-1}

    in place of :math:`G^\top X`: the ridge regression on X of a gradient step of the outputs. Brightness and
    contrast of the images no longer set the size of the step: ten times larger inputs make it about ten
    times smaller. For the first layer alone, fed with normalised pixels; with pixels of 0 to 255 the ridge
    means nothing.

    It is written to ``.grad``, so any optimizer can follow; a clip of the global norm sees another norm than
    before. Accumulated micro-batches and data-parallel ranks are fitted each on its own. The fit is solved in
    float32 at least, in the smaller of the sizes b and n; a convolution unfolds its input for it. In
    evaluation mode the layer is the plain one in everything, as probes of the loss want it, and so it is in
    forward mode, which has no backward pass to change; in training mode gradients of gradients are refused.

    .. code-block:: python

        nn.convert(model, {"conv1": nn.TrAct.of})
    """

    ridge: float
    weight: Tensor

    @staticmethod
    def of(layer: nn.Module, ridge: float = 0.1) -> TrActLinear | TrActConv2d:
        r"""The same layer with the same parameters.

        Args:
            layer: a plain ``nn.Linear`` or ``nn.Conv2d``.
            ridge: :math:`\lambda`, positive; 0.1 for all models of the paper.

        Raises:
            ValueError: another layer, or a bad ``ridge``.
        """
        made: TrActLinear | TrActConv2d
        has: dict[str, Any] = {
            "bias": getattr(layer, "bias", None) is not None,
            "ridge": ridge,
            "device": "meta",
        }
        if type(layer) is nn.Linear:
            made = TrActLinear(layer.in_features, layer.out_features, **has)
        elif type(layer) is nn.Conv2d:
            names = ("stride", "padding", "dilation", "groups", "padding_mode")
            shape = {name: getattr(layer, name) for name in names}
            size: Any = layer.kernel_size
            made = TrActConv2d(layer.in_channels, layer.out_channels, size, **shape, **has)
        else:
            raise ValueError(f"layer must be a plain nn.Linear or nn.Conv2d, got {type(layer).__name__}")
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def _fits(self) -> bool:
        backward = self.training and torch.is_grad_enabled() and self.weight.requires_grad
        return backward and not in_forward_mode()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ridge={self.ridge:g}"


class TrActLinear(TrAct, nn.Linear):
    """``nn.Linear`` as a first layer with the weight gradient of :class:`TrAct` (arXiv 2410.23970).

    Args:
        in_features, out_features, bias: of ``nn.Linear``.
        ridge: see :meth:`TrAct.of`.

    Shape: (..., in) to (..., out); b is the product of the leading dimensions.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, ridge: float = 0.1, **options: Any
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, **options)
        self.ridge = check_positive("ridge", ridge)

    def forward(self, input: Tensor) -> Tensor:
        if not self._fits():
            return nn.Linear.forward(self, input)
        return _Linear.apply(input, self.weight, self.bias, self.ridge)


class TrActConv2d(TrAct, nn.Conv2d):
    """``nn.Conv2d`` as a first layer with the weight gradient of :class:`TrAct` (arXiv 2410.23970).

    Args:
        in_channels, out_channels, kernel_size, options: of ``nn.Conv2d``, groups and padding modes included;
            every group is fitted on its own.
        ridge: see :meth:`TrAct.of`.

    Shape: as ``nn.Conv2d``; b is the number of patches, images times output positions.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, *, ridge: float = 0.1, **options: Any
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, **options)
        self.ridge = check_positive("ridge", ridge)

    def forward(self, input: Tensor) -> Tensor:
        if not self._fits():
            return nn.Conv2d.forward(self, input)
        x = input if input.dim() == 4 else input.unsqueeze(0)
        padding: Any = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = functional.pad(x, self._reversed_padding_repeated_twice, mode), (0, 0)
        geometry = [list(self.stride), list(padding), list(self.dilation)]
        out = _Conv2d.apply(x, self.weight, self.bias, *geometry, self.groups, self.ridge)
        return out if input.dim() == 4 else out.squeeze(0)
