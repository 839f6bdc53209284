"""Long short-term memory with layer normalisation (arXiv 1607.06450), in the place of ``torch.nn.LSTM``."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from thalweg._core.checks import check_count, check_number, check_positive

__all__ = ["LayerNormLSTM"]

Pair = tuple[Tensor, Tensor]


class LayerNormLSTM(nn.RNNBase):
    r"""``torch.nn.LSTM`` whose summed inputs and cells are normalised over units (arXiv 1607.06450).

    .. math:: (i, f, g, o) = \mathrm{LN}(W x) + \mathrm{LN}(U h) + b, \qquad
        c' = \sigma(f) \odot c + \sigma(i) \odot \tanh g, \qquad
        h' = \sigma(o) \odot \tanh \mathrm{LN}(c')

    The first two normalisations go over all 4H sums of a product. Their offsets are torch's two biases, whose
    sum is :math:`b`; weights and biases have torch's names and order. Statistics are taken for each example
    and step. The first state of zeros is normalised to zeros, with a slope of :math:`1/\sqrt\epsilon`.

    Steps are a loop in Python: 2 to 10 times slower than ``torch.nn.LSTM``, most with small batches. The loop
    compiles without a graph break, but unrolled: it takes longer the more steps there are, and starts anew
    for another number of them. Packed sequences run in eager mode. Under autocast products are in half
    precision, all else in the type of the weights.

    Args:
        input_size: features of a step.
        hidden_size: H, the units; at least 2.
        num_layers, batch_first, bidirectional: as in ``torch.nn.LSTM``. There is no ``proj_size``.
        bias: whether there are biases, and an offset of the cell's normalisation.
        dropout: rate between layers, in [0, 1].
        eps: :math:`\epsilon` of the normalisations.

    Shape: (steps, n, input_size), (n, steps, input_size) if ``batch_first``, (steps, input_size) or a
    ``PackedSequence``, and if wanted a first state, to the states of the last layer and (h, c), as in
    ``torch.nn.LSTM``: (layers * directions, n, H) each, without n for a single sequence.

    Raises:
        ValueError: an argument is out of range, or a shape or type does not fit.
    """

    weight_hh_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_count("input_size", input_size)
        check_count("hidden_size", hidden_size, low=2)
        check_count("num_layers", num_layers)
        check_number("dropout", dropout, 0, 1)
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **where
        )
        self.eps = check_positive("eps", eps)
        for suffix in chain.from_iterable(self._suffixes()):
            for kind in ("ih", "hh"):
                norm = nn.LayerNorm(4 * hidden_size, eps, bias=False, **where)
                self.add_module(f"norm_{kind}{suffix}", norm)
            self.add_module(f"norm_cell{suffix}", nn.LayerNorm(hidden_size, eps, bias=bias, **where))

    @classmethod
    def of(cls, lstm: nn.Module, eps: float = 1e-5) -> LayerNormLSTM:
        """In place of a ``torch.nn.LSTM``, whose weights and biases it takes over; gains are 1, offsets 0.

        Raises:
            ValueError: ``lstm`` is no ``torch.nn.LSTM``, has a projection or a weight that is not its own
                parameter, or fewer than 2 units.
        """
        if type(lstm) is not nn.LSTM:
            raise ValueError(f"lstm must be a torch.nn.LSTM, got {type(lstm).__name__}")
        if lstm.proj_size:
            raise ValueError(f"lstm must have no projection, got proj_size {lstm.proj_size}")
        first = lstm._parameters.get("weight_ih_l0")
        if first is None or lstm._parameters.keys() != set(lstm._flat_weights_names):
            raise ValueError(f"lstm must have weights that are its own parameters, got {[*lstm._parameters]}")
        made = cls(
            lstm.input_size,
            lstm.hidden_size,
            lstm.num_layers,
            lstm.bias,
            lstm.batch_first,
            lstm.dropout,
            lstm.bidirectional,
            eps=eps,
            device=first.device,
            dtype=first.dtype,
        )
        made._parameters.update(lstm._parameters)
        made._init_flat_weights()
        return made.train(lstm.training)

    def reset_parameters(self) -> None:
        """Weights as in ``torch.nn.LSTM``, gains 1, biases and offsets 0."""
        width = self.hidden_size**-0.5
        for p in self.parameters(recurse=False):
            nn.init.uniform_(p, -width, width) if p.dim() > 1 else nn.init.zeros_(p)
        for norm in self.children():
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()

    def _suffixes(self) -> list[list[str]]:
        """Ends of names: for each layer that of its one or two directions."""
        ways = ("", "_reverse")[: 1 + self.bidirectional]
        return [[f"_l{layer}{way}" for way in ways] for layer in range(self.num_layers)]

    def forward(self, input: Tensor | PackedSequence, hx: Pair | None = None) -> Any:
        if isinstance(input, PackedSequence):
            self._check_input(input.data, (2,), "packed data")
            sizes = input.batch_sizes.tolist()
            first = self._state(input.data, sizes[0], hx, single=False)
            order, back = input.sorted_indices, input.unsorted_indices
            rows, last = self._layers(input.data, sizes, _ordered(first, order))
            return PackedSequence(rows, input.batch_sizes, order, back), _ordered(last, back)
        self._check_input(input, (2, 3), "input")
        single = input.dim() == 2
        steps = input[:, None] if single else input.transpose(0, 1) if self.batch_first else input
        count, n = steps.shape[:2]
        if not count:
            raise ValueError(f"input must have at least one step, got shape {tuple(input.shape)}")
        rows, (h, c) = self._layers(steps.flatten(0, 1), [n] * count, self._state(steps, n, hx, single))
        output = rows.unflatten(0, (count, n))
        if single:
            return output[:, 0], (h[:, 0], c[:, 0])
        return output.transpose(0, 1) if self.batch_first else output, (h, c)

    def _check_input(self, input: Tensor, dims: tuple[int, ...], name: str) -> None:
        if input.dim() not in dims or input.shape[-1] != self.input_size:
            wanted = f"{' or '.join(map(str, dims))} dimensions, the last of {self.input_size},"
            raise ValueError(f"{name} must have {wanted} got shape {tuple(input.shape)}")
        self._check_type(input, name)

    def _check_type(self, tensor: Tensor, name: str) -> None:
        wanted = self.weight_hh_l0.dtype
        if tensor.dtype != wanted and not torch.is_autocast_enabled(tensor.device.type):
            raise ValueError(f"{name} must be {wanted} like the weights, got {tensor.dtype}")

    def _state(self, input: Tensor, n: int, hx: Pair | None, single: bool) -> Pair:
        """The first h and c, [layers * directions, n, H]."""
        shape = (self.num_layers * (1 + self.bidirectional), n, self.hidden_size)
        if hx is None:
            zeros = torch.zeros(shape, dtype=self.weight_hh_l0.dtype, device=input.device)
            return zeros, zeros
        if not isinstance(hx, tuple | list) or len(hx) != 2:
            raise ValueError(f"hx must be a pair of tensors (h, c), got {type(hx).__name__}")
        wanted = (shape[0], shape[2]) if single else shape
        for number, tensor in enumerate(hx):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"hx[{number}] must be a tensor, got {type(tensor).__name__}")
            if tensor.shape != wanted:
                raise ValueError(f"hx[{number}] must have shape {wanted}, got {tuple(tensor.shape)}")
            self._check_type(tensor, f"hx[{number}]")
        return hx[0].reshape(shape), hx[1].reshape(shape)

    def _layers(self, rows: Tensor, sizes: list[int], first: Pair) -> tuple[Tensor, Pair]:
        """All layers on steps that lie one after the other in ``rows`` [sum of sizes, input_size]."""
        last: list[Pair] = []
        for layer, suffixes in enumerate(self._suffixes()):
            if layer:
                rows = functional.dropout(rows, self.dropout, self.training)
            sides = []
            for reverse, suffix in enumerate(suffixes):
                state = first[0][len(last)], first[1][len(last)]
                side, end = self._direction(rows, sizes, state, suffix, bool(reverse))
                sides.append(side)
                last.append(end)
            rows = torch.cat(sides, 1)
        h, c = (torch.stack(states) for states in zip(*last, strict=True))
        return rows, (h, c)

    def _direction(
        self, rows: Tensor, sizes: list[int], state: Pair, suffix: str, reverse: bool
    ) -> tuple[Tensor, Pair]:
        norm_ih, norm_hh, norm_cell = (getattr(self, f"norm_{kind}{suffix}") for kind in ("ih", "hh", "cell"))
        weight = getattr(self, f"weight_hh{suffix}")
        # Under autocast the products alone are in half precision.
        sums = norm_ih(functional.linear(rows, getattr(self, f"weight_ih{suffix}")).to(weight.dtype))
        if self.bias:
            sums = sums + (getattr(self, f"bias_ih{suffix}") + getattr(self, f"bias_hh{suffix}"))
        h, c = state
        outputs = []
        for step in reversed(sums.split(sizes)) if reverse else sums.split(sizes):
            n = len(step)  # sequences that are in this step, the longest first
            gates = step + norm_hh(functional.linear(h[:n], weight).to(weight.dtype))
            i, f, g, o = gates.chunk(4, 1)
            cell = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * torch.tanh(g)
            output = torch.sigmoid(o) * torch.tanh(norm_cell(cell))
            outputs.append(output)
            # Those that have ended, or not begun, keep what they have.
            h, c = (output, cell) if n == len(h) else (torch.cat([output, h[n:]]), torch.cat([cell, c[n:]]))
        return torch.cat(outputs[::-1] if reverse else outputs), (h, c)


def _ordered(state: Pair, order: Tensor | None) -> Pair:
    return state if order is None else (state[0].index_select(1, order), state[1].index_select(1, order))
