"""A gated recurrent unit with layer normalisation (arXiv 1607.06450)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg._core.checks import check_count, check_positive

__all__ = ["LayerNormGRU"]


class LayerNormGRU(nn.Module):
    r"""One layer of gated recurrent units, each summed input normalised over its units (arXiv 1607.06450).

    .. math:: (r, z) = \sigma(\mathrm{LN}(W x) + \mathrm{LN}(U h)), \qquad
        n = \tanh(\mathrm{LN}(W_n x) + r \odot \mathrm{LN}(U_n h)), \qquad
        h' = (1 - z) \odot n + z \odot h

    The four normalisations have gains and offsets of their own, of sizes 2H, 2H, H and H; other biases there
    are none. Statistics are taken for each example and step. The first state of zeros is normalised to the
    offset, with a slope of :math:`1/\sqrt\epsilon`. Under autocast products are in half precision, all else
    in the type of the weights.

    Args:
        input_size: features of a step.
        hidden_size: H, the units.
        eps: :math:`\epsilon` of the normalisations.

    Shape: (n, steps, input_size), and if wanted a first state (n, H), to the states (n, steps, H) and the
    last of them (n, H). Batches come first, as in ``torch.nn.GRU(batch_first=True)``, but no layers.

    Raises:
        ValueError: an argument is out of range, or a shape or type does not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.input_size = check_count("input_size", input_size)
        self.hidden_size = check_count("hidden_size", hidden_size, low=2)
        self.eps = check_positive("eps", eps)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.input_weight = nn.Parameter(torch.empty(3 * hidden_size, input_size, **where))
        self.hidden_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size, **where))
        self.input_gates = nn.LayerNorm(2 * hidden_size, eps, **where)
        self.hidden_gates = nn.LayerNorm(2 * hidden_size, eps, **where)
        self.input_candidate = nn.LayerNorm(hidden_size, eps, **where)
        self.hidden_candidate = nn.LayerNorm(hidden_size, eps, **where)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as in ``torch.nn.GRU``; the normalisations, modules of their own, stay."""
        for weight in (self.input_weight, self.hidden_weight):
            nn.init.uniform_(weight, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def forward(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if input.dim() != 3 or input.shape[2] != self.input_size or not input.shape[1]:
            raise ValueError(f"input must have shape (n, steps, {self.input_size}), got {tuple(input.shape)}")
        self._check_type(input, "input")
        size, dtype = self.hidden_size, self.input_weight.dtype
        state = self._first(input, state).to(dtype)
        gates, candidates = functional.linear(input, self.input_weight).to(dtype).split([2 * size, size], -1)
        gates, candidates = self.input_gates(gates), self.input_candidate(candidates)
        states = []
        for gate, candidate in zip(gates.unbind(1), candidates.unbind(1), strict=True):
            sums = functional.linear(state, self.hidden_weight).to(dtype)
            inner, own = sums.split([2 * size, size], -1)
            reset, update = torch.sigmoid(gate + self.hidden_gates(inner)).chunk(2, -1)
            fresh = torch.tanh(candidate + reset * self.hidden_candidate(own))
            state = torch.lerp(fresh, state, update)
            states.append(state)
        return torch.stack(states, 1), state

    def _first(self, input: Tensor, state: Tensor | None) -> Tensor:
        shape = (input.shape[0], self.hidden_size)
        if state is None:
            return input.new_zeros(shape)
        if not isinstance(state, Tensor):
            raise ValueError(f"state must be a tensor, got {type(state).__name__}")
        if state.shape != shape:
            raise ValueError(f"state must have shape {shape}, got {tuple(state.shape)}")
        self._check_type(state, "state")
        return state

    def _check_type(self, tensor: Tensor, name: str) -> None:
        wanted = self.input_weight.dtype
        if tensor.dtype != wanted and not torch.is_autocast_enabled(tensor.device.type):
            raise ValueError(f"{name} must be {wanted} like the weights, got {tensor.dtype}")

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"
