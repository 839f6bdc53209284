"""Elephant (arXiv 2310.01365): a bell-shaped activation, so that fitting one input leaves others alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_not_negative, check_number, check_positive

__all__ = ["Elephant", "spread_bias_"]

FAR = 1e18  # |x / a|^d up to here; beyond, the value is below what float32 or float64 can add to anything


def _raised(x: Tensor, power: float) -> Tensor:
    """``x**power``, by squares as far as they go: a general power takes several times as long."""
    while power > 1 and power % 2 == 0:
        x, power = x.square(), power / 2
    return x if power == 1 else x**power


class Elephant(nn.Module):
    r"""In place of ``nn.ReLU()`` in hidden layers (arXiv 2310.01365).

    .. math:: \phi(x) = \frac{h}{1 + |x/a|^d}

    Value and slope both vanish away from zero; the slope is steepest, about :math:`hd/(4a)`, near
    :math:`|x| = a`. A unit then answers to a narrow band of inputs, so the layer before it needs biases that
    spread the bands out (:func:`spread_bias_`), and it needs many units. One whose inputs all lie far from
    zero is dead. The learning rate matters more than anything else here: try a tenth of the one for ReLU.

    Args:
        width: :math:`a`, positive.
        power: :math:`d`, at least 1; 4 and 8 in the paper. At 1 the bell has a kink.
        height: :math:`h`, positive.
        units: size of the last dimension of the input if each of its units is to learn an ``a`` and an ``h``
            of its own (arXiv 2509.19159), from the given values on. They are kept as logarithms; weight decay
            would pull them towards 1.

    Shape: any, to the same; (..., units) with ``units``. Half-precision input is computed in float32.

    Raises:
        ValueError: for a bad argument, or input whose last dimension is not ``units``.
    """

    is_activation = True  # by which probes know that it makes units
    log_width: Tensor | None
    log_height: Tensor | None

    def __init__(
        self,
        width: float = 0.1,
        power: float = 4,
        height: float = 1.0,
        *,
        units: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = check_positive("width", width)
        self.power = check_number("power", power, 1, math.inf, "[)")
        self.height = check_positive("height", height)
        self.units = units
        for name in ("log_width", "log_height"):
            value = None
            if units is not None:
                value = nn.Parameter(torch.empty(check_count("units", units), device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All widths and heights as given."""
        for log, start in ((self.log_width, self.width), (self.log_height, self.height)):
            if log is not None:
                nn.init.constant_(log, math.log(start))

    @property
    def unitwise(self) -> bool:
        """Whether all units are treated alike: what follows them through a model may then pass."""
        return self.units is None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        width: Tensor | float = self.width
        height: Tensor | float = self.height
        if self.log_width is not None and self.log_height is not None:
            if not x.dim() or x.shape[-1] != self.units:
                raise ValueError(f"input must have shape (..., {self.units}), got {tuple(x.shape)}")
            width, height = self.log_width.exp(), self.log_height.exp()
        # Held back, or a large power would be infinite and its slope 0 times infinity.
        ratio = (wide / width).abs().clamp_max(FAR ** (1 / self.power))
        return (height / (1 + _raised(ratio, self.power))).to(x.dtype)

    def extra_repr(self) -> str:
        text = f"width={self.width:g}, power={self.power:g}, height={self.height:g}"
        return text if self.units is None else f"{text}, units={self.units}"


@torch.no_grad()
def spread_bias_(layer: nn.Module, spread: float) -> nn.Module:
    r"""Set the bias of a layer that feeds :class:`Elephant` to even steps, in place (arXiv 2310.01365).

    From :math:`-\sqrt 3 s` to :math:`\sqrt 3 s`, which is a standard deviation of :math:`s` for many units.
    Without it the bells of a layer with few inputs all stand in the same place.

    Args:
        layer: a linear or convolution layer with a bias; the weight is left as it is.
        spread: :math:`s`, at least 0; 1.28 for one input and a width of 0.08 in the paper.

    Returns:
        ``layer``.

    Raises:
        ValueError: the layer has no bias, or ``spread`` is negative.
    """
    reach = math.sqrt(3) * check_not_negative("spread", spread)
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor) or bias.dim() != 1:
        raise ValueError(f"layer must have a bias, one number a unit; got {layer}")
    bias.copy_(torch.linspace(-reach, reach, len(bias), device=bias.device, dtype=bias.dtype))
    return layer
