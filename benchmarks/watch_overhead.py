"""What watching costs: blocks of steps, watched and not in turn, in one process.

``python -m benchmarks watch_overhead``: a small GPT, an MLP with steps of 1 to 2 ms, a CNN. Each pair of
neighbouring blocks gives one ratio of their times; the median of those is little moved by whatever else the
machine does. The run stays attached over all watched blocks, so that its budget has reached its steady state;
unwatched blocks take its hooks off. The bar: at a budget of 3 % the median is at most 4 %.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg
from thalweg import tasks

Batch = tuple[Tensor, Tensor]
# Of the median ratio, at the default budget of 3 %.
BAR = 0.04


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def gpt() -> tuple[nn.Module, Callable[[], Batch]]:
    text = tasks.library_text()
    source = torch.Generator().manual_seed(0)
    return tasks.GPT(97, 64, seed=0), lambda: text.batch("train", 16, 64, source)


def mlp() -> tuple[nn.Module, Callable[[], Batch]]:
    inputs, targets = tasks.handwritten_digits().train
    source = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        index = torch.randint(0, len(inputs), (128,), generator=source)
        return inputs[index], targets[index]

    return tasks.MLP((64, 336, 336, 10), seed=0), draw


def cnn() -> tuple[nn.Module, Callable[[], Batch]]:
    inputs, targets = tasks.handwritten_digits(shape="image").train
    source = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        index = torch.randint(0, len(inputs), (64,), generator=source)
        return inputs[index], targets[index]

    return tasks.CNN(width=16, seed=0), draw


def measure(
    make: Callable[[], tuple[nn.Module, Callable[[], Batch]]], block: int, blocks: int, store: str
) -> str:
    model, draw = make()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = thalweg.watch(model, opt, loss_fn=cross_entropy, store=store)

    def train(watched: bool) -> float:
        start = time.perf_counter()
        for _ in range(block):
            batch = draw()
            loss = cross_entropy(model, batch)
            loss.backward()
            if watched:
                run.log(loss=loss, batch=batch)
            opt.step()
            opt.zero_grad()
        if watched:
            # What waits for the recorder is this block's.
            run.recorder.flush()
        return (time.perf_counter() - start) / block

    train(True)
    left = time.perf_counter()
    ratios, plain = [], []
    for pair in range(blocks):
        times = {}
        # The order alternates, so that a machine that slows down favours neither.
        for watched in (True, False) if pair % 2 else (False, True):
            hooks = opt._optimizer_step_pre_hooks, model._forward_hooks
            kept = [dict(hook) for hook in hooks]
            if watched:
                # Time in unwatched blocks is not this run's.
                run._clock.since += time.perf_counter() - left
            else:
                for hook in hooks:
                    hook.clear()
            times[watched] = train(watched)
            left = time.perf_counter() if watched else left
            for hook, entries in zip(hooks, kept, strict=True):
                hook.update(entries)
        plain.append(times[False])
        ratios.append(times[True] / times[False])
    spent, fixed = run.budget.spent, run.budget.hooks / run.step
    runs = {name: account.runs for name, account in run.budget.accounts.items() if account.runs}
    left_out = run.left_out()
    run.close()
    low, _, high = quantiles(ratios, n=4)
    verdict = "passes" if median(ratios) - 1 <= BAR else "FAILS"
    return (
        f"{make.__name__}: {verdict} the bar of {BAR:.0%}: step {median(plain) * 1e3:.2f} ms, overhead "
        f"{median(ratios) - 1:+.1%} "
        f"(quartiles {low - 1:+.1%} to {high - 1:+.1%}, {blocks} pairs of {block} steps), "
        f"accounted {spent:.1%}, hooks and recorder {fixed * 1e6:.0f} us a step\n"
        f"  readings: {_listed(runs)}\n  left out: {_listed(left_out)}"
    )


def _listed(about: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in about.items()) or "nothing"


def main() -> None:
    print(f"budget 3%, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for make, block in ((gpt, 20), (mlp, 400), (cnn, 200)):
            print(measure(make, block, 30, f"{folder}/runs.sqlite"), flush=True)


if __name__ == "__main__":
    main()
