"""Weight Compander (arXiv 2306.16993): every weight is a bounded odd function of what is trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg._core.checks import check_positive

__all__ = ["WeightCompander"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class WeightCompander(nn.Module):
    r"""A ``torch.nn.utils.parametrize`` parametrization (arXiv 2306.16993; the exact form is from memory).

    .. math:: w = \Psi(v) = a \arctan(v / b)

    No weight is larger than :math:`a\pi/2`, and the gradient of v is that of w times
    :math:`ab / (b^2 + v^2)`: steps are held back where v is large. Adam, whose steps do not see the
    gradient's scale, takes part of that away again. Weight decay acts on v, so less on large w.
    A scale that is too small drives v off to where no gradient is left.

    Args:
        scale: a, positive. The bound should leave room above the first weights: 0.3 suits layers of a few
            hundred inputs.
        width: b, positive; by default a, so that the slope at 0 is one.
        learned: whether a and b are trained, one pair a layer, kept as logarithms. The bound then moves.

    Shape: any, to the same; half precision is computed in float32.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, scale: float = 0.3, width: float | None = None, *, learned: bool = False):
        super().__init__()
        scale = check_positive("scale", scale)
        width = scale if width is None else check_positive("width", width)
        logs = torch.tensor([math.log(scale), math.log(width)])
        # Buffers of numbers that are not trained, so that a state dict always says which weights it means.
        self.log_scale: Tensor
        self.log_width: Tensor
        for name, value in zip(("log_scale", "log_width"), logs.unbind(), strict=True):
            if learned:
                self.register_parameter(name, nn.Parameter(value.clone()))
            else:
                self.register_buffer(name, value.clone())

    @classmethod
    def of(
        cls, layer: nn.Module, scale: float = 0.3, width: float | None = None, *, learned: bool = False
    ) -> nn.Module:
        """``layer`` itself, computing what it did: its weight is companded, its bias stays.

        Raises:
            ValueError: ``layer`` is no linear or convolution layer, its weight is parametrized or on the meta
                device, it has weights that the bound cannot hold, or an argument is out of range.
        """
        if not isinstance(layer, LAYERS):
            kinds = ", ".join(kind.__name__ for kind in LAYERS)
            raise ValueError(f"layer must be one of {kinds}; got {type(layer).__name__}")
        if parametrize.is_parametrized(layer, "weight"):
            # Torch would compand what the other one gives, from a v that was never solved for.
            raise ValueError("layer must have a plain weight, got a parametrized one: compand it first")
        if layer.weight.is_meta:
            raise ValueError("layer must hold numbers, got a weight on the meta device")
        made = cls(scale, width, learned=learned).to(layer.weight.device)
        made.right_inverse(layer.weight.detach())  # refuses before anything has changed
        # A tensor of its own: torch writes v into the one there is, which another module may share.
        layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)
        parametrize.register_parametrization(layer, "weight", made)
        return layer

    @staticmethod
    def fold(layer: nn.Module) -> nn.Module:
        """``layer`` itself with a plain weight again, to the same outputs; without a compander, as it is.

        Raises:
            ValueError: the layer has another parametrization as well.
        """
        found: Any = getattr(layer, "parametrizations", None)
        if found is None or not any(isinstance(one, WeightCompander) for one in found.modules()):
            return layer
        if set(found) != {"weight"} or len(found.weight) > 1:
            raise ValueError(f"layer must have no other parametrization than its compander, got {layer}")
        now: Any = layer.weight
        weight = nn.Parameter(now.detach().clone(), found.weight.original.requires_grad)
        # Not torch's remove_parametrizations: it takes the weight from the class, which copies share.
        plain = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        layer.__class__ = plain
        layer._parameters = {"weight": weight, **layer._parameters}
        return layer

    def forward(self, weight: Tensor) -> Tensor:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return (self.log_scale.exp() * (wide / self.log_width.exp()).atan()).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The v that gives ``weight``.

        Raises:
            ValueError: a weight reaches the bound.
        """
        scale = self.log_scale.detach().double().exp()
        largest = weight.detach().abs().max().double() if weight.numel() else scale * 0
        # Not up to the bound itself: v would grow beyond measure, and no gradient comes back from there.
        if not largest < 0.99 * scale * math.pi / 2:
            raise ValueError(
                f"scale must be above {largest / (0.99 * math.pi / 2):.3g} to hold weights up to "
                f"{largest:.3g}, got {scale:.3g}"
            )
        v = self.log_width.detach().double().exp() * (weight.double() / scale).tan()
        return v.to(weight.dtype)

    def extra_repr(self) -> str:
        learned = isinstance(self.log_scale, nn.Parameter)
        return f"scale={self.log_scale.exp():.3g}, width={self.log_width.exp():.3g}, learned={learned}"
