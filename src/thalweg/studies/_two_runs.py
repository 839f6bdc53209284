"""Two networks trained apart, from other weights and in another order of batches, and what lies between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.probe import LossPath, loss_line
from thalweg.studies import _language as language
from thalweg.surgery import AlignReport, align
from thalweg.tasks import MLP, ResNet, cross_entropy, handwritten_digits, minibatch

MLP_STEPS, RESNET_STEPS = 1000, 150
POINTS = 25
SIZES = {
    "2 layers of 16": (64, 16, 16, 10),
    "2 layers of 256": (64, 256, 256, 10),
    "6 layers of 128": (64, *[128] * 6, 10),
}


class Runs(NamedTuple):
    """Both networks, the optimizer's description, and what they are judged and gathered on."""

    ends: tuple[nn.Module, nn.Module]
    spec: dict[str, Any]
    example: Tensor
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def loss(self, model: nn.Module) -> Tensor:
        """In nats, on what was not trained on."""
        return cross_entropy(model(self.test[0]), self.test[1])

    def accuracy(self, model: nn.Module) -> float:
        made = model(self.test[0])
        return (made.argmax(-1) == self.test[1]).double().mean().item()

    def batches(self, size: int = 650) -> list[Tensor]:
        """The training inputs."""
        return list(self.train[0].split(size))


@cache  # settings and arms share runs
def runs(kind: str, seed: int) -> Runs | None:
    """Two runs of a kind of network; None if one diverged."""
    found = [_trained(kind, seed, branch) for branch in (1, 2)]
    if any(one is None for one in found):
        return None
    (first, spec, train, test), (second, *_) = found  # type: ignore[misc]
    return Runs((first.eval(), second.eval()), spec, train[0][:4], train, test)


def _trained(kind: str, seed: int, branch: int) -> tuple[Any, ...] | None:
    own = 10_000 * branch + seed
    if kind == "language model":
        made: list[nn.Module] = []

        def make(model: nn.Module) -> optim.Descent:
            made.append(model)
            return optim.AdamW(model.parameters(), lr=4e-3)

        curve, spec = language.train(make, optim.linear_decay(language.STEPS), own, evaluate_every=1000)
        source = torch.Generator().manual_seed(0)
        parts = [language.text().batch(part, 64, language.CONTEXT, source) for part in ("train", "test")]
        return None if curve.diverged else (made[0], spec, *parts)
    split = handwritten_digits(1300, shape="image" if kind == "residual" else "flat", seed=seed)
    model: nn.Module
    if kind == "residual":
        model = ResNet(width=16, stages=2, blocks=1, seed=own)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        steps = RESNET_STEPS
    else:
        model = MLP(SIZES[kind], seed=own)
        optimizer = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        steps = MLP_STEPS
    spec = dict(optim.spec(optimizer))
    schedule = LambdaLR(optimizer, optim.linear_decay(steps))
    curve = minibatch(model, split, optimizer, steps, seed=own, evaluate_every=steps, schedule=schedule)
    return None if curve.diverged else (model, spec, split.train, split.test)


@cache
def aligned(kind: str, seed: int, method: str) -> tuple[nn.Module, AlignReport] | None:
    """The second run in the order of the first."""
    both = runs(kind, seed)
    if both is None:
        return None
    batches = both.batches() if method != "weights" else None
    return align(both.ends[1], both.ends[0], both.example, method=method, batches=batches)


def line(both: Runs, end: nn.Module) -> LossPath:
    """Test loss on the line from the first run to ``end``, normalisation statistics gathered anew."""
    return loss_line(both.loss, both.ends[0], both.ends[0], end, points=POINTS, norm_batches=both.batches())


def along(
    make: Callable[[float], nn.Module], judge: Callable[[nn.Module], Any], at: Iterable[float]
) -> list[float]:
    """``judge`` of the models that ``make`` gives at each place."""
    with torch.no_grad():
        return [float(judge(make(t).eval())) for t in at]
