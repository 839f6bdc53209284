"""How often each rule misses a planted fault, and how often it speaks on a healthy run.

``python benchmarks/finding_rates.py --seeds 300 30 --write docs/finding-rates.md`` runs seeds 300 to 329.
Rules were designed on seeds below 110. Findings of severity ``info`` describe and do not alarm; they are
counted apart.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg
from thalweg import tasks
from thalweg.watch import Finding

Step = Callable[[int, nn.Module], None]
Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = model(batch[0])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[1].reshape(-1))


def minibatches(pair: tuple[Tensor, Tensor], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    inputs, targets = pair
    source = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(inputs), generator=source).split(size):
            yield inputs[index], targets[index]


def watched(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    *,
    loss_fn: Loss = cross_entropy,
    evaluate: tuple | None = None,
    before_step: Step = lambda step, model: None,
) -> list[Finding]:
    """Train with every sensor as often as it wants, and give the findings."""
    with thalweg.watch(model, opt, loss_fn=loss_fn, evaluate=evaluate, budget=1e3, store=None) as run:
        for step in range(1, steps + 1):
            batch = next(batches)
            loss = loss_fn(model, batch)
            loss.backward()
            before_step(step, model)
            run.log(loss=loss, batch=batch)
            opt.step()
            opt.zero_grad()
    return run.findings


# Healthy runs.


def digits_mlp(seed: int, steps: int = 400, before_step: Step = lambda step, model: None) -> list[Finding]:
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, 128, 128, 10), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = minibatches(split.train, 64, seed)
    return watched(model, opt, batches, steps, evaluate=(split.train, split.test), before_step=before_step)


def digits_cnn(seed: int) -> list[Finding]:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return watched(model, opt, minibatches(split.train, 64, seed), 200, evaluate=(split.train, split.test))


def text_gpt(seed: int) -> list[Finding]:
    text = tasks.library_text(max_characters=200_000)
    model = tasks.GPT(97, 32, layers=1, heads=2, width=32, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(seed)
    return watched(model, opt, iter(lambda: text.batch("train", 8, 32, source), None), 200)


def teacher_sgd(seed: int) -> list[Finding]:
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, 128, 128, 10), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return watched(model, opt, minibatches(split.train, 64, seed), 400, evaluate=(split.train, split.test))


HEALTHY = {
    "digits MLP, AdamW": digits_mlp,
    "digits CNN, AdamW": digits_cnn,
    "text GPT, AdamW": text_gpt,
    "noisy teacher MLP, SGD": teacher_sgd,
}

# Planted faults.


def spiked(seed: int) -> list[Finding]:
    """At step 150 one weight's gradient is multiplied by 100."""

    def spike(step: int, model: nn.Module) -> None:
        if step == 150:
            for p in model[2].parameters():
                p.grad.mul_(100)

    return digits_mlp(seed, 160, spike)


def too_fast_descent(seed: int) -> list[Finding]:
    """Gradient descent on a whole batch, from step 100 on at six times the rate that curvature allows."""
    split = tasks.noisy_clusters(samples=256, seed=seed)
    model = tasks.MLP((20, 32, 5), activation="tanh", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)

    def jump(step: int, model: nn.Module) -> None:
        if step == 100:
            params = list(model.parameters())
            top = thalweg.probe.sharpness(lambda: cross_entropy(model, split.train), params).top
            opt.param_groups[0]["lr"] = 6 * 2 / top

    return watched(model, opt, iter(lambda: split.train, None), 140, before_step=jump)


def too_fast_adam(seed: int) -> list[Finding]:
    """Adam at a constant rate on a quadratic: as gradients shrink, steps come to the edge and stay there."""
    scales = torch.logspace(0, 2, 20)
    source = torch.Generator().manual_seed(seed)
    model = nn.Linear(20, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 20, generator=source))
    opt = torch.optim.Adam(model.parameters(), lr=3e-2, betas=(0.9, 0.95))

    def quadratic(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (scales * model.weight.square()).sum()

    batch = torch.ones(4, 20), torch.zeros(4)
    return watched(model, opt, iter(lambda: batch, None), 600, loss_fn=quadratic)


def silenced(seed: int) -> list[Finding]:
    """At step 100 the biases of 60 % of one hidden layer become -1000."""

    def kill(step: int, model: nn.Module) -> None:
        if step == 100:
            with torch.no_grad():
                model[2].bias[:77] = -1000

    return digits_mlp(seed, 160, kill)


def collapsed(seed: int) -> list[Finding]:
    """At step 100 the output layer is multiplied by 20: the same answers, with enormous logits."""

    def blow_up(step: int, model: nn.Module) -> None:
        if step == 100:
            with torch.no_grad():
                for p in model[4].parameters():
                    p.mul_(20)

    return digits_mlp(seed, 110, blow_up)


def broken(seed: int) -> list[Finding]:
    """At step 50 one entry of one gradient is NaN."""

    def poison(step: int, model: nn.Module) -> None:
        if step == 50:
            model[2].weight.grad[0, 0] = float("nan")

    return digits_mlp(seed, 60, poison)


def memorising(seed: int) -> list[Finding]:
    """200 examples, four in five of their labels wrong: learnt by heart, nothing to generalise."""
    split = tasks.noisy_clusters(samples=200, spread=3.0, noisy_labels=0.8, seed=seed)
    model = tasks.MLP((20, 256, 5), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    return watched(model, opt, iter(lambda: split.train, None), 400, evaluate=(split.train, split.test))


def grokking(seed: int) -> list[Finding]:
    """Logged accuracies of a run that groks: by heart from step 50 on, the rule from about step 300 on."""
    source = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([p], lr=0.1)
    with thalweg.watch(None, opt, budget=0, store=None) as run:
        for step in range(0, 500, 10):
            noise = 0.005 * torch.randn(1, generator=source).item()
            learnt = 1 / (1 + math.exp((300 - step) / 30))
            run.log(train_accuracy=min(1.0, step / 50), test_accuracy=0.05 + 0.9 * learnt + noise)
            opt.step()
    return run.findings


PLANTED = {
    "gradient spike": (spiked, "gradient spike"),
    "rate far above 2/sharpness, gradient descent": (too_fast_descent, "edge of stability"),
    "constant rate, vanishing gradient, Adam": (too_fast_adam, "edge of stability"),
    "units silenced": (silenced, "dormant units growing"),
    "logits blown up": (collapsed, "softmax collapse"),
    "NaN in a gradient": (broken, "not finite"),
    "random labels memorised": (memorising, "memorised, not generalising"),
    "grokking (logged)": (grokking, "generalisation under way"),
}


def healthy_table(seeds: range) -> list[str]:
    names = sorted({name for _, name in PLANTED.values()})
    lines = ["| healthy run | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, train in HEALTHY.items():
        alarms: Counter[str] = Counter()
        infos: Counter[str] = Counter()
        for seed in seeds:
            found = train(seed)
            alarms.update({one.name for one in found if one.severity != "info"})
            infos.update({one.name for one in found if one.severity == "info"})
        cells = [f"{alarms[n]}/{len(seeds)}" + (f" (info {infos[n]})" if infos[n] else "") for n in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def planted_table(seeds: range) -> list[str]:
    lines = ["| planted fault | finding expected | missed | step found, median |", "|---|---|---|---|"]
    for title, (train, name) in PLANTED.items():
        steps = [min((f.step for f in train(seed) if f.name == name), default=None) for seed in seeds]
        found = sorted(step for step in steps if step is not None)
        middle = str(found[len(found) // 2]) if found else "-"
        lines.append(f"| {title} | {name} | {len(steps) - len(found)}/{len(seeds)} | {middle} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(300, 10), metavar=("FIRST", "COUNT"))
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_known_args()[0]
    first, count = chosen.seeds
    torch.set_num_threads(1)
    seeds = range(first, first + count)
    planted, healthy = planted_table(seeds), healthy_table(seeds)
    if chosen.write is None:
        return
    text = f"""# How often the findings are right

Made by `python benchmarks/finding_rates.py --seeds {first} {count} --write {chosen.write}`: seeds {first} to
{first + count - 1}; the rules were designed on seeds below 110. torch {torch.__version__}, one thread, every
sensor as often as it wants. What each run does is written in that script. Runs last 110 to 600
steps. None of {count} is compatible with a true rate of up to {1 - 0.05 ** (1 / count):.0%} (one-sided, 95 %
confidence).

## Misses

{chr(10).join(planted)}

## False alarms

Runs with a finding of severity `warning` or `critical`, of all runs. Findings of severity `info` describe
and do not alarm; they are in brackets.

{chr(10).join(healthy)}
"""
    chosen.write.parent.mkdir(parents=True, exist_ok=True)
    chosen.write.write_text(text)


if __name__ == "__main__":
    main()
