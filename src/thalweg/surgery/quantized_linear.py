"""A linear layer whose weight is stored in a few bits, but for some entries that are kept in 16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.surgery._calibration import at_least_float
from thalweg.surgery._packing import pack, unpack

__all__ = ["QuantizedLinear"]

LEAST_STEP = 2.0**-24  # above 0 in float16


class QuantizedLinear(nn.Module):
    """A linear layer [..., in_features] -> [..., out_features] whose weight is packed.

    Buffers: ``codes`` and ``zero_points`` (uint8, bits packed without a gap), ``scales`` (float16, one a
    group), ``places`` (int32, into the flattened weight) and ``kept`` (float16). The weight is unpacked at
    every call: memory is saved, not time. It is not trained; the bias may be. A model that is cast to another
    dtype afterwards rounds scales and kept entries to it.

    Args:
        layer: the layer to store; stays as it is, and the bias is shared with it.
        bits: of a code.
        group: consecutive inputs of one output that share a step; divides in_features.
        keep: boolean (out_features, in_features), the entries kept in 16 bits.
    """

    codes: Tensor
    zero_points: Tensor
    scales: Tensor
    places: Tensor
    kept: Tensor

    def __init__(self, layer: nn.Linear, bits: int, group: int, keep: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits, self.group, self.dtype = bits, group, layer.weight.dtype
        weight = layer.weight.detach().to(at_least_float(layer.weight))
        self.register_buffer("places", keep.flatten().nonzero().flatten().int())
        self.register_buffer("kept", weight[keep].half())
        # Zero belongs to every range, so that its code fits into the bits of a code.
        inner = weight.masked_fill(keep, 0).view(-1, group)
        low, high = inner.amin(1).clamp(max=0), inner.amax(1).clamp(min=0)
        top = 2**bits - 1
        scales = ((high - low) / top).half().clamp_(min=LEAST_STEP)
        step = scales.to(weight.dtype)
        zero_points = (-low / step).round().clamp(0, top)
        codes = ((inner / step[:, None]).round() + zero_points[:, None]).clamp(0, top)
        self.register_buffer("codes", pack(codes, bits))
        self.register_buffer("zero_points", pack(zero_points, bits))
        self.register_buffer("scales", scales)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, in_features) that the codes and the kept entries stand for."""
        count = self.out_features * self.in_features
        codes = unpack(self.codes, self.bits, count).view(-1, self.group)
        zero_points = unpack(self.zero_points, self.bits, count // self.group)
        exact = torch.promote_types(self.dtype, torch.float32)
        weight = ((codes - zero_points[:, None]) * self.scales.to(exact)[:, None]).flatten()
        weight = weight.index_put((self.places.long(),), self.kept.to(exact))
        return weight.view(self.out_features, self.in_features).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"group={self.group}, kept={self.kept.numel()}"
        )
