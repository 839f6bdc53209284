"""Bringing one trained model's units into the order of another's: ``surgery.align`` against rebasin.

Both get the same two trained models and one example batch; what is timed is everything from there to permuted
weights: ours with tracing, copying and the check that the function stayed. Seconds are those of one thread's
processor time, so that other work on the machine counts little; the two take turns, and ratios are medians of
pairs. Barriers are those of the test loss over 11 points of the line, with batch normalisation gathered anew.
``groups``: orders of units that were found; ``change``: of the model's answer, relative to its largest, with
batch normalisation gathered anew there too, since rebasin leaves running statistics in their old order.

rebasin visits groups in another random order each time and makes two passes or four: shown is its run with
the median barrier. ``from data`` is ours by correlations of activations on training data, which it does not
have. It is timed if it can be imported (``pip install --no-deps rebasin torchview graphviz``) and permutes no
attention and no residual stream of a transformer.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.probe import loss_line
from thalweg.surgery import align, interpolate
from thalweg.tasks import (
    GPT,
    ResNet,
    Split,
    cross_entropy,
    handwritten_digits,
    library_text,
    minibatch,
    next_character,
)

SPEED, POINTS = 10, 11
CONTEXT, CHARACTERS = 48, 97


class Problem(NamedTuple):
    """Two trained models, an example batch, test data, and data for batch normalisation."""

    name: str
    models: tuple[nn.Module, nn.Module]
    example: Tensor
    test: tuple[Tensor, Tensor]
    train: Tensor
    rounds: int

    def barrier(self, end: nn.Module) -> float:
        def loss(model: nn.Module) -> Tensor:
            return cross_entropy(model(self.test[0]), self.test[1])

        first = self.models[0]
        return loss_line(loss, first, first, end, points=POINTS, norm_batches=[self.train]).barrier


def gpt() -> Problem:
    """Two layers of width 128, 300 steps on characters."""
    text, found = library_text(), []
    for seed in (1, 2):
        model = GPT(CHARACTERS, CONTEXT, layers=2, heads=4, width=128, seed=seed)
        optimizer = optim.AdamW(model.parameters(), lr=2e-3)
        next_character(model, text, optimizer, 300, 12, CONTEXT, seed=seed, evaluate_every=300)
        found.append(model.eval())
    source = torch.Generator().manual_seed(0)
    train, test = (text.batch(part, 64, CONTEXT, source) for part in ("train", "test"))
    return Problem("GPT, 2 x 128", (found[0], found[1]), train[0][:2], test, train[0], 9)


def resnet(width: int, steps: int, rounds: int) -> Callable[[], Problem]:
    """Shaped like ResNet-18, on handwritten digits of 16 x 16 pixels.

    At 8 x 8 the last stage has one pixel: eight of nine entries of its kernels only ever meet padding, stay
    what they were at first, and yet count in matching.
    """

    def make() -> Problem:
        small, found = handwritten_digits(1300, shape="image"), []
        (inputs, targets), (images, digits) = small.train, small.test
        split = Split((doubled(inputs), targets), (doubled(images), digits), small.classes, small.name)
        for seed in (1, 2):
            model = ResNet(width=width, seed=seed)
            optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            schedule = LambdaLR(optimizer, optim.linear_decay(steps))
            minibatch(model, split, optimizer, steps, seed=seed, evaluate_every=steps, schedule=schedule)
            found.append(model.eval())
        name, train = f"ResNet-18, {width} wide", split.train[0][:650]
        return Problem(name, (found[0], found[1]), train[:2], split.test, train, rounds)

    return make


def doubled(images: Tensor) -> Tensor:
    return functional.interpolate(images, scale_factor=2)


class Found(NamedTuple):
    model: nn.Module
    seconds: float
    groups: int


def ours(problem: Problem, method: str = "weights") -> Found:
    first, second = problem.models
    start = time.process_time()
    batches = None if method == "weights" else list(problem.train.split(65))
    model, report = align(second, first, problem.example, method=method, batches=batches)
    return Found(model, time.process_time() - start, len(report.permutations))


def theirs(problem: Problem) -> Found:
    from rebasin import PermutationCoordinateDescent

    first, model = copy.deepcopy(problem.models)
    start = time.process_time()
    found = PermutationCoordinateDescent(first, model, problem.example)
    found.rebasin()
    return Found(model, time.process_time() - start, len(found.pinit.model_graph.permutation_to_info))


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((p - q).detach().double().square().sum() for p, q in pairs)) ** 0.5


def changed(problem: Problem, found: Found) -> float:
    """How far the permuted model's answer is from the model's own, with statistics gathered anew."""
    pair = [
        interpolate(one, one, 0.0, batches=[problem.train])[0] for one in (problem.models[1], found.model)
    ]
    with torch.no_grad():
        before, after = (model.eval()(problem.example) for model in pair)
    return ((after - before).abs().max() / before.abs().max()).item()


def line(problem: Problem, who: str, found: Found, barrier: float) -> None:
    change = changed(problem, found)
    far = distance(problem.models[0], found.model)
    numbers = f"{1e3 * found.seconds:10.1f}{found.groups:8d}{far:10.3f}{barrier:10.4f}{change:10.1e}"
    print(f"{who:12}{numbers}", flush=True)


def compare(problem: Problem, peer: bool) -> None:
    first, second = problem.models
    size = sum(p.numel() for p in second.parameters())
    once, mine = ours(problem), ours(problem)
    naive, reached = problem.barrier(second), problem.barrier(mine.model)
    print(f"{problem.name}, {size} parameters: distance {distance(first, second):.3f}, barrier {naive:.4f}")
    print(f"the first call took {1e3 * once.seconds:.1f} ms")
    print(f"{'':12}{'ms':>10}{'groups':>8}{'distance':>10}{'barrier':>10}{'change':>10}")
    by_data = ours(problem, "correlations")
    pairs: list[tuple[Found, Found]] = []
    if peer:
        try:
            pairs = [(ours(problem), theirs(problem)) for _ in range(problem.rounds)]
        except Exception as error:
            print(f"rebasin fails on this model: {type(error).__name__}: {error}")
    if not pairs:
        line(problem, "thalweg", mine, reached)
        line(problem, "from data", by_data, problem.barrier(by_data.model))
        return
    times = [statistics.median(one.seconds for one in column) for column in zip(*pairs, strict=True)]
    line(problem, "thalweg", mine._replace(seconds=times[0]), reached)
    heights = sorted((problem.barrier(two.model), place) for place, (_, two) in enumerate(pairs))
    height, place = heights[len(pairs) // 2]
    other = pairs[place][1]._replace(seconds=times[1])
    line(problem, "rebasin", other, height)
    line(problem, "from data", by_data, problem.barrier(by_data.model))
    ratios = sorted(two.seconds / one.seconds for one, two in pairs)
    ratio = statistics.median(ratios)
    low, high = heights[0][0], heights[-1][0]
    spread = f"{ratios[0]:.1f} to {ratios[-1]:.1f} times faster"
    print(f"{len(pairs)} runs: {spread}, rebasin's barriers {low:.4f} to {high:.4f}")
    checks = {f"{ratio:.1f} times faster (bar {SPEED})": ratio >= SPEED}
    if changed(problem, other) > 1e-3:
        print("rebasin's model no longer computes the same function, so that its barrier says nothing")
    else:
        checks["barrier not above rebasin's"] = reached <= height + 1e-3
    print("; ".join(f"{what}: {'passed' if held else 'FAILED'}" for what, held in checks.items()), flush=True)


def available() -> bool:
    try:
        import rebasin  # noqa: F401
    except ImportError as missing:
        print(f"rebasin is not there ({missing}): pip install --no-deps rebasin torchview graphviz")
        return False
    return True


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("one example batch, one thread, float32; milliseconds of processor time")
    peer = available()
    makers: tuple[Callable[[], Any], ...] = (gpt, resnet(16, 150, 7), resnet(64, 40, 3))
    for make in makers:
        compare(make(), peer)
