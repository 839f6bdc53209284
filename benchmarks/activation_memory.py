"""What RandomizedLinear keeps between the passes, and what a pass then takes, against nn.Linear.

Bytes are those of every tensor that autograd holds after the forward pass, each memory once, without
parameters and the input. ``stated`` is what they should fall by: the inputs that nobody else keeps, less the
projections of all layers that were replaced. Peak is the most that was allocated at one time in forward
and backward, beyond parameters and input. Times are of forward and backward, medians. One thread, float32.

``python -m benchmarks activation_memory --only block``
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from thalweg.nn import RandomizedLinear, convert

ROWS, WIDTH, BLOCKS, ROUNDS = 4096, 128, 4, 7


class Attention(nn.Module):
    """Query, key and value from one input, as transformers without a fused projection have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).view(-1, 64, WIDTH)
        heads = [one(y).unflatten(-1, (4, -1)).transpose(1, 2) for one in (self.query, self.key, self.value)]
        mixed = functional.scaled_dot_product_attention(*heads)
        return x + self.out(mixed.transpose(1, 2).flatten(-2)).view_as(x)


class FeedForward(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(self.activation(self.expand(self.norm(x))))


@dataclass(frozen=True)
class Work:
    """One block of a model, the layers of it to replace, and the sizes of the inputs that this frees."""

    block: Callable[[], nn.Module]
    layers: tuple[str, ...]
    freed: tuple[int, ...]

    def make(self) -> nn.Module:
        return nn.Sequential(*(self.block() for _ in range(BLOCKS)))


BOTH = ("expand", "contract")
WORKLOADS = {
    "feed-forward, GELU": Work(lambda: FeedForward(nn.GELU), BOTH, (WIDTH, 4 * WIDTH)),
    "feed-forward, ReLU": Work(lambda: FeedForward(nn.ReLU), BOTH, (WIDTH,)),
    "attention, query alone": Work(Attention, ("query",), ()),
    "attention, query key value": Work(Attention, ("query", "key", "value"), (WIDTH,)),
}


def kept(model: nn.Module, x: Tensor) -> int:
    seen = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        seen[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    for tensor in (*model.parameters(), x):
        seen.pop(tensor.untyped_storage().data_ptr(), None)
    del out
    return sum(seen.values())


def peak(model: nn.Module, x: Tensor) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            model(x).square().sum().backward()
        now = most = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
    return most


def milliseconds(models: list[nn.Module], x: Tensor) -> list[float]:
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, mine in zip(models, times, strict=True):
            start = time.perf_counter()
            model(x).square().sum().backward()
            mine.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    chosen = parser.parse_known_args()[0].only
    torch.set_num_threads(1)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    print(f"{ROWS} rows of {WIDTH}; kept and peak in MiB, times in ms")
    print(f"{'':45}{'kept':>8}{'saved':>8}{'stated':>8}{'peak':>8}{'time':>8}")
    for name, work in WORKLOADS.items():
        if chosen not in name:
            continue
        torch.manual_seed(0)
        plain = work.make()
        models, labels, stated = [plain], ["exact"], [0]
        for distribution, ratio in (("rademacher", 0.2), ("sparse", 0.2), ("sparse", 0.1), ("sparse", 0.05)):
            options = {"ratio": ratio, "distribution": distribution}
            parts = {
                f"*.{layer}": lambda one, o=options: RandomizedLinear.of(one, **o) for layer in work.layers
            }
            model = convert(plain, parts)
            p = int(ratio * ROWS)
            sizes = [one.in_features for one in model.modules() if isinstance(one, RandomizedLinear)]
            models.append(model)
            labels.append(f"{distribution} {ratio}")
            stated.append(4 * (BLOCKS * sum(work.freed) * ROWS - p * sum(sizes)))
        times = milliseconds(models, x)
        whole = kept(plain, x)
        for model, label, promise, took in zip(models, labels, stated, times, strict=True):
            here = kept(model, x)
            numbers = (n / 2**20 for n in (here, whole - here, promise, peak(model, x)))
            print(f"{name:28}{label:17}" + "".join(f"{n:8.2f}" for n in numbers) + f"{took:8.1f}", flush=True)


if __name__ == "__main__":
    main()
