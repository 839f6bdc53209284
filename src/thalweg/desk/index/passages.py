"""Many texts to MiniLM's vectors: batches of equal length in torch, in a third of the time of one by one.

The encoder of questions (:mod:`thalweg.papers.minilm`) is made for a few words at once and loads no torch;
for a few papers it is the quicker one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thalweg.papers.minilm import DIMENSIONS, MiniLM

if TYPE_CHECKING:
    import torch

__all__ = ["Encode", "PassageEncoder", "encoder_for", "passage"]

Encode = Callable[[Sequence[str]], np.ndarray]
# In half the time of 256; the texts that the encoder was trained on were as long.
TOKENS = 128
_FEW = 100  # papers; torch takes two seconds to load
_TOGETHER = 32  # texts in a batch
_LAYERS, _HEADS, _EPSILON = 6, 12, 1e-12
_WORTH = 1.5  # times as fast as float32 bfloat16 has to be here; where it is not native it is slower


def passage(title: str, abstract: str) -> str:
    """What is encoded of an imported paper."""
    return f"{title}. {abstract}"


@contextmanager
def encoder_for(count: int, folder: Path) -> Iterator[Encode]:
    """Texts to unit vectors, float32 (texts, 384), by the encoder that is done first with ``count`` of them.

    Many are encoded by a process of their own, which takes torch, and the memory for it, along when it ends.

    Args:
        folder: of the model (:func:`thalweg.papers.minilm.model_folder`).

    Raises:
        OSError, ValueError, KeyError: the files are missing, or not those of this model; the process ended.
    """
    if count <= _FEW:
        model = MiniLM(folder)
        yield lambda texts: np.array([model(text, TOKENS) for text in texts]).reshape(-1, DIMENSIONS)
        return
    command = [sys.executable, "-m", __name__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        into, out = process.stdin, process.stdout
        assert into and out
        if error := json.loads(out.readline() or '"its process ended"'):
            raise ValueError(error)

        def encode(texts: Sequence[str]) -> np.ndarray:
            into.write(json.dumps(list(texts)).encode() + b"\n")
            into.flush()
            found = out.read(len(texts) * DIMENSIONS * 4)
            if len(found) < len(texts) * DIMENSIONS * 4:
                raise ValueError("the process that encodes papers ended")
            return np.frombuffer(found, np.float32).reshape(-1, DIMENSIONS)

        yield encode


class PassageEncoder:
    """Texts to unit vectors, float32 (texts, 384), on all processors; each is cut after 128 tokens.

    In bfloat16 where the processor multiplies it natively: that turns vectors by less than a degree, as
    keeping them in bytes does.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._kind = _quickest()
        self._weights = {
            name: weight.to(self._kind)
            for name, weight in load_file(folder / "model.safetensors").items()
            if weight.is_floating_point()
        }
        for layer in range(_LAYERS):
            of = f"encoder.layer.{layer}.attention.self"
            for what in ("weight", "bias"):
                parts = [self._weights.pop(f"{of}.{part}.{what}") for part in ("query", "key", "value")]
                self._weights[f"{of}.{what}"] = torch.cat(parts)
        self._tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokens.no_padding()
        self._tokens.enable_truncation(TOKENS)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        ids = [one.ids for one in self._tokens.encode_batch(list(texts))]
        # Of equal length, so that little is padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found, threads = np.empty((len(ids), DIMENSIONS), np.float32), torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)  # whole batches, unlike questions, are work to share
        try:
            with torch.inference_mode():
                for start in range(0, len(order), _TOGETHER):
                    some = order[start : start + _TOGETHER]
                    found[some] = self._encode([ids[i] for i in some]).numpy()
        finally:
            torch.set_num_threads(threads)
        return found

    def _encode(self, ids: list[list[int]]) -> torch.Tensor:
        import torch
        from torch.nn import functional
        from torch.nn.utils.rnn import pad_sequence

        words = pad_sequence([torch.tensor(one) for one in ids], batch_first=True)
        lengths = torch.tensor([len(one) for one in ids])
        real = torch.arange(words.shape[1]) < lengths[:, None]
        table = {kind: self._weights[f"embeddings.{kind}_embeddings.weight"] for kind in _TABLES}
        hidden = table["word"][words] + table["position"][: words.shape[1]] + table["token_type"][0]
        hidden = self._normalised(hidden, "embeddings")
        for layer in range(_LAYERS):
            hidden = self._layer(hidden, real, f"encoder.layer.{layer}")
        return functional.normalize((hidden.float() * real[..., None]).sum(1), dim=-1)

    def _layer(self, hidden: torch.Tensor, real: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional

        parts = self._linear(hidden, f"{name}.attention.self").unflatten(-1, (3, _HEADS, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=real[:, None, None, :]
        )
        mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
        hidden = self._normalised(hidden + mixed, f"{name}.attention.output")
        inner = functional.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._normalised(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional

        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normalised(self, x: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional

        norm = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return functional.layer_norm(x, (DIMENSIONS,), *norm, _EPSILON)


_TABLES = ("word", "position", "token_type")


def _quickest() -> torch.dtype:
    import torch

    def seconds(kind: torch.dtype) -> float:
        x, weight = torch.ones(1024, DIMENSIONS, dtype=kind), torch.ones(1536, DIMENSIONS, dtype=kind)
        torch.nn.functional.linear(x, weight)
        start = time.perf_counter()
        for _ in range(3):
            torch.nn.functional.linear(x, weight)
        return time.perf_counter() - start

    return torch.bfloat16 if seconds(torch.float32) > _WORTH * seconds(torch.bfloat16) else torch.float32


def main() -> None:
    """Lists of texts come in as lines of JSON, their vectors go out, until there are no more."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the process that asks, which then ends this one
    out = sys.stdout.buffer
    encoder, error = None, ""
    try:
        encoder = PassageEncoder(Path(sys.argv[1]))
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    with suppress(BrokenPipeError):
        out.write(json.dumps(error).encode() + b"\n")
        out.flush()
        while encoder and (line := sys.stdin.buffer.readline()):
            out.write(encoder(json.loads(line)).tobytes())
            out.flush()
        return
    os._exit(0)  # nobody reads any more, which closing the output would find out once more


if __name__ == "__main__":
    main()
