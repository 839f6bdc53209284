"""The task that several studies share: an MLP 32-128-128-10 on 3072 noisily labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.tasks import MLP, Curve, minibatch, noisy_teacher

BATCH = 64
CHANCE = 2.302585  # the loss, in nats, of ten equal guesses


def train(
    make: Callable[[Iterable[nn.Parameter]], Any],
    schedule: Callable[[int], float],
    seed: int,
    steps: int,
    evaluate_every: int = 20,
    edit_gradients: Callable[[int, nn.Module], None] | None = None,
) -> tuple[Curve, dict[str, Any]]:
    """Train from scratch; ``seed`` decides data, weights and batches. Returns the curve and the spec.

    ``edit_gradients(step, model)`` may change ``.grad`` between the backward pass and the update.
    """
    model = MLP((32, 128, 128, 10), seed=seed)
    optimizer = make(model.parameters())
    spec = optim.spec(optimizer)

    def on_step(step: int, loss: Tensor, batch: Any) -> None:
        if edit_gradients is not None:
            edit_gradients(step, model)

    curve = minibatch(
        model,
        noisy_teacher(seed=seed),
        optimizer,
        steps,
        batch_size=BATCH,
        seed=seed,
        evaluate_every=evaluate_every,
        on_step=on_step,
        schedule=LambdaLR(optimizer, schedule),
    )
    return curve, dict(spec)
