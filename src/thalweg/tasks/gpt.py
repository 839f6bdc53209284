"""A small GPT-2 style decoder, for text and, read out at the last position, for modular arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_count
from thalweg.tasks._seeds import seeded

__all__ = ["GPT"]


class GPT(nn.Module):
    """A causal transformer with normalisation before each sublayer (Radford et al. 2019, "GPT-2").

    Weights start normal with standard deviation 0.02, divided by √(2 · layers) in the layers that write to
    the residual stream; biases start at zero. There is no dropout. With V = vocabulary, T = context, w =
    width there are V w + T w + layers (12 w² + 13 w) + 2 w parameters, V w more unless ``tied``, and
    2 layers w / heads more with ``qk_norm``.

    For modular arithmetic mod p use ``GPT(p + 2, context=4, layers=1, heads=4, width=128, readout="last")``.

    Args:
        vocabulary: number of tokens.
        context: longest sequence that the learned positions allow.
        layers: number of blocks.
        heads: attention heads; must divide ``width``.
        width: size of the residual stream; the feed-forward layer is four times as wide.
        seed: weights that depend on this number only, with the global random state left alone; None draws
            from the global state.
        tied: use the token embedding also as the output layer.
        readout: ``"all"`` gives logits for every position, ``"last"`` only for the last.
        qk_norm: normalise the queries and keys of each head, with a learned gain and no bias, so that
            attention logits cannot grow with the weights (arXiv 2302.05442, 2309.14322).

    Raises:
        ValueError: for a bad argument; from ``forward`` for a sequence longer than ``context``.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int = 2,
        heads: int = 4,
        width: int = 128,
        seed: int | None = None,
        tied: bool = False,
        readout: str = "all",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        check_count("vocabulary", vocabulary)
        self.context = check_count("context", context)
        check_count("layers", layers)
        check_count("heads", heads)
        check_count("width", width)
        if width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        self.readout = check_choice("readout", readout, ("all", "last"))
        with seeded(seed):
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Embedding(context, width)
            self.blocks = nn.Sequential(*(Block(width, heads, qk_norm) for _ in range(layers)))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)
            self._initialise(layers)
        if tied:
            self.head.weight = self.tokens.weight

    def _initialise(self, layers: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                deviation = 0.02 / (2 * layers) ** 0.5 if name.endswith(("project", "contract")) else 0.02
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """From int64 ``tokens`` [b, t] to logits [b, t, vocabulary] or, reading the last, [b, vocabulary]."""
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"tokens must be at most {self.context} long (the context), got {length}")
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        x = self.norm(self.blocks(x))
        return self.head(x[:, -1] if self.readout == "last" else x)


class Block(nn.Module):
    """Attention, then a feed-forward layer, each added to the stream [b, t, width]."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qk_norm)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    """Causal softmax attention over [b, t, width]; queries, keys and values come from one linear layer."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = (
            nn.LayerNorm(width // heads, bias=False) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.query_key_value(x).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query), self.key_norm(key)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, four times the width inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.activation = nn.GELU()
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.activation(self.expand(x)))
