"""One batch or one layer gives a gradient far above the usual."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, cross_entropy
from benchmarks.findings.plain import digits_mlp, teacher_mlp, text_gpt
from benchmarks.findings.scenario import Planted
from thalweg import optim

NAME = "gradient spike"
AT = 150


def one_layer(seed: int, planted: bool) -> Outcome:
    def spike(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            for p in model[2].parameters():
                p.grad.mul_(100)

    return digits_mlp(seed, AT + 50, before_step=spike)


def unscaled_inputs(seed: int, planted: bool) -> Outcome:
    calls = 0

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        # Sensors call it as well, in evaluation mode; only the loop's own calls are counted.
        calls += model.training
        wrong = planted and model.training and calls == AT
        return cross_entropy(model, (batch[0] * 30, batch[1]) if wrong else batch)

    return teacher_mlp(seed, AT + 50, loss_fn=loss_fn)


def summed_loss(seed: int, planted: bool) -> Outcome:
    calls = 0

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += model.training
        wrong = planted and model.training and calls == AT
        return cross_entropy(model, batch) * (batch[1].numel() if wrong else 1)

    return text_gpt(seed, AT + 50, partial(optim.Lion, lr=5e-4), warm=True, loss_fn=loss_fn)


one_layers_gradient = Planted(
    NAME, f"gradient of one layer times 100 at step {AT}", "digits", "MLP", "AdamW", one_layer, AT
)
a_batch_that_is_not_scaled = Planted(
    NAME, f"inputs times 30 at step {AT}", "noisy teacher", "MLP", "SGD, momentum", unscaled_inputs, AT
)
a_loss_that_is_summed = Planted(
    NAME, f"loss summed, not averaged, at step {AT}", "text", "GPT", "Lion", summed_loss, AT
)
