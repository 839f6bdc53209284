"""Why no low-rank step is twice as fast as another: its two products of rank 128 alone, ours, and the peer's.

The shapes are those of ``optimizer_step``. ``products`` forms each gradient's part in its subspace and brings
one back, and nothing else: what any exact step has to do. A period is the step that finds new subspaces and
199 that do not, from the medians of each.
"""

from __future__ import annotations

import statistics
import time
import warnings

import torch
from torch import Tensor

from benchmarks.optimizer_step import PEERS, copies, parameters, seconds
from thalweg import optim

RANK, ROUNDS, PERIOD = 128, 9, 200


def products(gradients: list[Tensor], bases: list[Tensor], into: list[Tensor]) -> float:
    start = time.perf_counter()
    for g, basis, out in zip(gradients, bases, into, strict=True):
        if g.shape[0] >= g.shape[1]:
            torch.mm(g @ basis, basis.T, out=out)
        else:
            torch.mm(basis, basis.T @ g, out=out)
    return time.perf_counter() - start


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    params = parameters()
    gradients = [p.grad for p in params if p.ndim == 2 and p.grad is not None]
    bases = [torch.linalg.qr(torch.randn(min(g.shape), RANK)).Q for g in gradients]
    into = [torch.empty_like(g) for g in gradients]
    work = 4 * RANK * sum(g.numel() for g in gradients) / 1e9
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = min(seconds_of(lambda: a @ b) for _ in range(ROUNDS))
    print(f"{torch.get_num_threads()} threads, float32, rank {RANK}, medians of {ROUNDS}")
    print(f"the products are {work:.1f} GFLOP; a product of 2048 x 2048 reaches {17.18 / best:.0f} GFLOP/s")
    for name in ("GaLore", "Fira"):
        ours, peer = optim.list_recipes()[name](copies(params), compile=True), PEERS[name](copies(params))
        seconds(ours)  # compiles
        refreshed = seconds(optim.list_recipes()[name](copies(params), compile=True)), seconds(peer)
        for one in (ours, peer):
            seconds(one)
        rows = [(products(gradients, bases, into), seconds(ours), seconds(peer)) for _ in range(ROUNDS)]
        alone, mine, theirs = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        steps = (1e3 * refreshed[0] + (PERIOD - 1) * mine, 1e3 * refreshed[1] + (PERIOD - 1) * theirs)
        print(
            f"{name}: products {alone:.0f} ms, ours {mine:.0f}, peer {theirs:.0f} (the peer could be beaten "
            f"{theirs / alone:.2f} times at most; it is {theirs / mine:.2f} times). Period of {PERIOD}: new "
            f"subspaces take {refreshed[0]:.1f} s against {refreshed[1]:.1f}, in all "
            f"{steps[1] / steps[0]:.2f} times",
            flush=True,
        )


def seconds_of(make) -> float:
    start = time.perf_counter()
    make()
    return time.perf_counter() - start
