"""What normalisations and parametrizations cost: forward and backward after torch.compile, against torch.

Both are compiled and take turns; a ratio is the median over the rounds of one pair's ratio. The bar is 1.2.
What has no bar is shown because a reader will ask: two stages against the first of them alone, and everything
in eager mode. One thread, float32.

``python -m benchmarks layers --only ghosts``
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg.nn import (
    BatchChannelNorm,
    Elephant,
    GhostBatchNorm,
    TrAct,
    WeightCompander,
    WeightStandardization,
)

ROUNDS, WARM, BAR = 41, 3, 1.2


@dataclass(frozen=True)
class Pair:
    """Ours, what it stands in for, and an input's shape; whether the bar holds for it."""

    ours: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    shape: tuple[int, ...]
    bar: bool = True


def two_stages() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(64), nn.GroupNorm(32, 64))


def block(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), norm, nn.ReLU())


IMAGES, SMALL, ROWS = (128, 64, 16, 16), (2, 64, 32, 32), (1024, 512)
PAIRS = {
    "ghosts of 32, images": Pair(lambda: GhostBatchNorm(64, 32), lambda: nn.BatchNorm2d(64), IMAGES),
    "ghosts of 32 and a tail, images": Pair(
        lambda: GhostBatchNorm(64, 32), lambda: nn.BatchNorm2d(64), (120, *IMAGES[1:])
    ),
    "ghosts of 64, rows": Pair(lambda: GhostBatchNorm(512, 64), lambda: nn.BatchNorm1d(512), ROWS),
    "ghosts of 64 and a tail, rows": Pair(
        lambda: GhostBatchNorm(512, 64), lambda: nn.BatchNorm1d(512), (1000, 512)
    ),
    "batch and channels": Pair(lambda: BatchChannelNorm(64), two_stages, IMAGES),
    "batch and channels, estimated": Pair(lambda: BatchChannelNorm(64, estimated=True), two_stages, IMAGES),
    "batch and channels, 2 images": Pair(lambda: BatchChannelNorm(64, estimated=True), two_stages, SMALL),
    "batch and channels against batch alone": Pair(
        lambda: BatchChannelNorm(64), lambda: nn.BatchNorm2d(64), IMAGES, bar=False
    ),
    "batch and channels after a convolution": Pair(
        lambda: block(BatchChannelNorm(64)), lambda: block(nn.BatchNorm2d(64)), (32, *IMAGES[1:])
    ),
    "standardised convolution": Pair(
        lambda: WeightStandardization.of(nn.Conv2d(64, 64, 3, padding=1)),
        lambda: nn.Conv2d(64, 64, 3, padding=1),
        (32, *IMAGES[1:]),
    ),
    "standardised linear": Pair(
        lambda: WeightStandardization.of(nn.Linear(512, 512)), lambda: nn.Linear(512, 512), ROWS
    ),
    "companded linear": Pair(
        lambda: WeightCompander.of(nn.Linear(512, 512)), lambda: nn.Linear(512, 512), ROWS
    ),
    "companded convolution": Pair(
        lambda: WeightCompander.of(nn.Conv2d(64, 64, 3, padding=1)),
        lambda: nn.Conv2d(64, 64, 3, padding=1),
        (32, *IMAGES[1:]),
    ),
    "elephant against GELU": Pair(Elephant, nn.GELU, ROWS, bar=False),
    "elephant after a layer, against GELU": Pair(
        lambda: nn.Sequential(nn.Linear(512, 512), Elephant()),
        lambda: nn.Sequential(nn.Linear(512, 512), nn.GELU()),
        ROWS,
    ),
    "tract, 784 pixels": Pair(
        lambda: TrAct.of(nn.Linear(784, 512)), lambda: nn.Linear(784, 512), (1024, 784), bar=False
    ),
    "tract, 3 x 3 on colour images": Pair(
        lambda: TrAct.of(nn.Conv2d(3, 64, 3, padding=1)),
        lambda: nn.Conv2d(3, 64, 3, padding=1),
        (64, 3, 32, 32),
        bar=False,
    ),
}


def seconds(module: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> float:
    start = time.perf_counter()
    module(x).backward(upstream)
    return time.perf_counter() - start


def measured(pair: Pair, compiled: bool) -> tuple[float, float, float]:
    """Milliseconds of ours and of the plain module, and the median ratio."""
    torch.manual_seed(0)
    x = torch.randn(pair.shape, requires_grad=True)
    modules: list[Callable[[Tensor], Tensor]] = [pair.ours(), pair.plain()]
    upstream = torch.randn_like(modules[1](x))
    if compiled:
        modules = [torch.compile(module, fullgraph=True) for module in modules]
    for _ in range(WARM):
        for module in modules:
            seconds(module, x, upstream)
    rounds = []
    for number in range(ROUNDS):
        order = (0, 1) if number % 2 else (1, 0)
        times = {which: seconds(modules[which], x, upstream) for which in order}
        rounds.append((times[0], times[1]))
    ours, plain = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
    return ours, plain, statistics.median(one / other for one, other in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    chosen = parser.parse_known_args()[0].only
    torch.set_num_threads(1)
    print(f"forward + backward in ms, medians of {ROUNDS} rounds")
    print(f"{'':42}{'ours':>8}{'plain':>8}{'ratio':>8}{'eager':>8}")
    worst = 0.0
    for name, pair in PAIRS.items():
        if chosen not in name:
            continue
        torch.compiler.reset()
        ours, plain, ratio = measured(pair, compiled=True)
        eager = measured(pair, compiled=False)[2]
        worst = max(worst, ratio if pair.bar else 0.0)
        verdict = ("bar met" if ratio <= BAR else "bar missed") if pair.bar else ""
        print(f"{name:42}{ours:8.2f}{plain:8.2f}{ratio:8.2f}{eager:8.2f}  {verdict}", flush=True)
    print(f"worst ratio with a bar: {worst:.2f} (bar {BAR})")


if __name__ == "__main__":
    main()
