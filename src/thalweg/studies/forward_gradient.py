"""Forward gradients (arXiv 2202.08587): how far does one random direction a step bring a small network?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.credit import forward_gradient, forward_gradient_variance
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, between, otherwise
from thalweg.tasks import MLP, accuracy, handwritten_digits

STEPS, BATCH, EVERY = 2000, 64, 100
SIZES = (64, 32, 10)
DRAWS = 4000
DEPTHS = (2, 16)
ONE = grid(lr=(0.0,))  # nothing is trained

STUDY = Study(
    paper="forward-gradient",
    claim="The estimate is unbiased, with a known variance and nothing stored for a backward pass; small "
    "networks train to the same result as with backpropagation.",
    setting="training a small network",
    metric="test accuracy on digits after 2000 steps (a diverged run counts as chance, 0.1): one direction a "
    "step minus backpropagation, each at the learning rate that is best for this number",
    verdict={"reproduced": at_least(-0.02), "direction only": at_least(-0.2), "not reproduced": otherwise},
    effect="method - baseline",
    worst=0.1,
    axes=("steps", "test accuracy"),
    baseline=Arm("backpropagation", grid(lr=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0))),
    method=Arm("one direction", grid(lr=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03))),
    references=(Arm("4 directions", grid(lr=(1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1))),),
    beside=(
        Setting(
            setting="variance",
            metric="mean squared distance of a forward gradient from the gradient over the gradient's "
            "square, 4000 draws, first weights (whatever is above 100000 counts as that): (p + 1) / K by the "
            "formula / measured",
            verdict={"reproduced": between(0.9, 1.1), "not reproduced": otherwise},
            worst=1e5,
            axes=("draws", "mean squared distance / squared gradient"),
            log_y=True,
            baseline=Arm("formula", ONE),
            method=Arm("measured", ONE),
        ),
        Setting(
            setting="memory by depth",
            metric="kilobytes kept for a backward pass per further hidden layer of 64 units, batch of 64, by "
            "autograd's own count (whatever is above 1000 counts as that): backpropagation minus forward "
            "gradient",
            verdict={"reproduced": at_least(8), "direction only": at_least(1), "not reproduced": otherwise},
            effect="baseline - method",
            worst=1e3,
            axes=("hidden layers", "kilobytes kept"),
            baseline=Arm("backpropagation", ONE),
            method=Arm("one direction", ONE),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=2.5,
    notes="MLP 64-32-10 (2410 parameters), batches of 64, plain SGD whose rate falls linearly to 0, "
    "the same batches for all. Gaussian directions, one for the whole batch. No times are compared: "
    "in eager PyTorch a forward-mode pass costs a few plain ones.",
)


def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def trained(arm: str, seed: int, lr: float) -> Trial:
    data = handwritten_digits(seed=seed)
    model = MLP(SIZES, seed=seed)
    optimizer = optim.SGD(model.parameters(), lr=lr)
    spec = dict(optim.spec(optimizer))
    schedule = LambdaLR(optimizer, optim.linear_decay(STEPS))
    order, directions = (torch.Generator().manual_seed(seed) for _ in range(2))
    at: list[int] = []
    right: list[float] = []
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(data.train[1]), (BATCH,), generator=order)
        batch = data.train[0][chosen], data.train[1][chosen]
        optimizer.zero_grad()
        if arm == "backpropagation":
            loss = loss_of(model, batch)
            loss.backward()
        else:
            count = 1 if arm == "one direction" else 4
            loss = forward_gradient(model, batch, loss_of, directions=count, generator=directions)
        if not bool(loss.isfinite()):
            return Trial(float("nan"), spec, (at or [0], right or [0.1]))
        optimizer.step()
        schedule.step()
        if step % EVERY == 0:
            at.append(step)
            right.append(accuracy(model, *data.test))
    numbers = {"training loss of the last batch": loss.item()}
    return Trial(right[-1], spec, (at, right), numbers)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def variance(arm: str, seed: int, spec: dict[str, Any]) -> Trial:
    model = MLP(SIZES, seed=seed)
    batch = tuple(part[:BATCH] for part in handwritten_digits(seed=seed).train)
    expected = forward_gradient_variance(sum(p.numel() for p in model.parameters()))
    if arm == "formula":
        return Trial(expected, spec, ((0, DRAWS), (expected, expected)))
    loss_of(model, batch).backward()
    true, source = flat(model), torch.Generator().manual_seed(seed)
    total, mean, at, so_far = 0.0, torch.zeros_like(true), [], []
    for draw in range(1, DRAWS + 1):
        model.zero_grad()
        forward_gradient(model, batch, loss_of, generator=source)
        estimate = flat(model)
        total += float((estimate - true).square().sum() / true.square().sum())
        mean += estimate / DRAWS
        if draw % 100 == 0:
            at.append(draw)
            so_far.append(total / draw)
    bias = float((mean - true).square().sum() / true.square().sum()) * DRAWS / expected
    return Trial(total / DRAWS, spec, (at, so_far), {"squared bias of the mean, 1 for none": bias})


def kept(arm: str, depth: int, seed: int) -> float:
    """Kilobytes that autograd keeps for a backward pass, weights aside."""
    model = MLP((64, *[64] * depth, 10), seed=seed)
    batch = tuple(part[:BATCH] for part in handwritten_digits(seed=seed).train)
    weights = {p.data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        if arm == "backpropagation":
            loss_of(model, batch).backward()
        else:
            forward_gradient(model, batch, loss_of)
    return sum(size for place, size in seen.items() if place not in weights) / 1000


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if setting == "training a small network":
        return trained(arm, seed, lr)
    spec = dict(optim.spec(optim.SGD(MLP(SIZES, seed=seed).parameters(), lr=1.0)))
    if setting == "variance":
        return variance(arm, seed, spec)
    first, last = (kept(arm, depth, seed) for depth in DEPTHS)
    return Trial((last - first) / (DEPTHS[1] - DEPTHS[0]), spec, (DEPTHS, (first, last)))
