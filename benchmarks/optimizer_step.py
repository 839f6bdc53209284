"""Step time of every recipe against ``torch.optim.AdamW(fused=True)``: 39M float32 parameters in 90 tensors.

Both optimizers live in one process and step in turn, on the same gradients; a row gives the median of the
pairwise ratios and their quartiles.
"""

from __future__ import annotations

import statistics
import time

import torch

from thalweg import optim

ROUNDS = 30


def shapes() -> list[tuple[int, ...]]:
    """A transformer of width 512 with 11 blocks."""
    block: list[tuple[int, ...]] = [
        (1536, 512),
        (1536,),
        (512, 512),
        (512,),
        (2048, 512),
        (2048,),
        (512, 2048),
        (512,),
    ]
    return [(8192, 512), (512, 512), *block * 11]


def parameters() -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes()]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def seconds(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    peers = parameters()
    count = sum(p.numel() for p in peers)
    print(f"{count / 1e6:.1f}M parameters, {len(peers)} tensors, {torch.get_num_threads()} threads, float32")
    fused = torch.optim.AdamW(peers, fused=True)
    heads = f"{'optimizer':28} {'ms':>7} {'fused AdamW ms':>15} {'ratio':>7} {'quartiles':>15}"
    print(heads, f"{'first step s':>13}")
    rows = [(f"thalweg {name}", make, {"compile": True}) for name, make in optim.list_recipes().items()]
    rows.append(("torch AdamW (foreach)", torch.optim.AdamW, {"foreach": True}))
    for name, make, options in rows:
        ours = [torch.nn.Parameter(p.detach().clone()) for p in peers]
        for p, q in zip(ours, peers, strict=True):
            p.grad = q.grad
        optimizer = make(ours, **options)
        first = seconds(optimizer)
        for _ in range(3):
            seconds(optimizer), seconds(fused)
        pairs = [(seconds(optimizer), seconds(fused)) for _ in range(ROUNDS)]
        ratios = [mine / theirs for mine, theirs in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        mine, theirs = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{low:.2f} to {high:.2f}"
        print(f"{name:28} {mine:7.1f} {theirs:15.1f} {middle:7.2f} {spread:>15} {first:13.1f}", flush=True)
