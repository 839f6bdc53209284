"""Weight Standardization (arXiv 1903.10520): every filter has mean 0 and variance 1 where it is used."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg._core.checks import check_choice, check_positive

__all__ = ["WeightStandardization"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class WeightStandardization(nn.Module):
    r"""A ``torch.nn.utils.parametrize`` parametrization (arXiv 1903.10520).

    .. math:: \hat W_o = (W_o - \mu_o) / \sqrt{\sigma_o^2 + \epsilon}

    for every output filter :math:`W_o`, in float32 at least; the gradient goes through mean and variance.
    What is trained and stored is :math:`W`. A normalisation has to follow the layer, since outputs grow with
    the square root of the filter's size; after one, weight decay on :math:`W` only changes its learning rate.

    Args:
        eps: :math:`\epsilon`, inside the root.
        correction: 0 for the biased variance of the paper's text, 1 for the unbiased one of its code.

    Shape: (filters, ...), to the same.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, eps: float = 1e-5, correction: int = 0):
        super().__init__()
        self.eps = check_positive("eps", eps)
        self.correction = check_choice("correction", correction, (0, 1))

    @classmethod
    def of(cls, layer: nn.Module, eps: float = 1e-5, correction: int = 0) -> nn.Module:
        """``layer`` itself, with its weight standardised: its bias stays, its weight starts as it is.

        Raises:
            ValueError: ``layer`` is no linear or convolution layer, or its filters hold a single number, of
                which nothing would be left.
        """
        if not isinstance(layer, LAYERS):
            kinds = ", ".join(kind.__name__ for kind in LAYERS)
            raise ValueError(f"layer must be one of {kinds}; got {type(layer).__name__}")
        if layer.weight[0].numel() < 2:
            raise ValueError(
                f"layer must have filters of at least 2 numbers, got weight {tuple(layer.weight.shape)}"
            )
        parametrize.register_parametrization(layer, "weight", cls(eps, correction))
        return layer

    def forward(self, weight: Tensor) -> Tensor:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        dims = tuple(range(1, weight.dim()))
        variance, mean = torch.var_mean(wide, dims, correction=self.correction, keepdim=True)
        return ((wide - mean) * (variance + self.eps).rsqrt()).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned becomes the stored weight."""
        return weight

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}, correction={self.correction}"
