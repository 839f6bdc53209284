"""What calibration data say about the linear layers of a model: the size of their inputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.surgery._edit import blocks_of, refuse_unless, weight_of

LossFn = Callable[[nn.Module, Any], Tensor]


def checked_sequences(sequences: Any) -> list[Any]:
    """The calibration sequences as a list; a tensor is cut into batches of one.

    Raises:
        ValueError: there is none.
    """
    if isinstance(sequences, Tensor):
        sequences = sequences.split(1) if sequences.dim() else []
    if not isinstance(sequences, Iterable) or isinstance(sequences, str | Mapping):
        raise ValueError(f"sequences must be an iterable of batches, got {type(sequences).__name__}")
    found = list(sequences)
    if not found:
        raise ValueError("sequences must hold at least one batch, got none")
    return found


def run(model: nn.Module, sequence: Any, loss_fn: LossFn | None) -> Any:
    """One forward pass: by ``loss_fn`` if there is one, else ``model(sequence)``.

    Raises:
        ValueError: the model does not run on the sequence. What ``loss_fn`` raises is its own affair.
    """
    if loss_fn is not None:
        return loss_fn(model, sequence)
    try:
        if isinstance(sequence, Mapping):
            return model(**sequence)
        return model(*sequence) if isinstance(sequence, tuple | list) else model(sequence)
    except Exception as error:
        raise ValueError(
            f"sequences must be what {type(model).__name__} runs on, or be read by a loss_fn, got "
            f"{type(error).__name__}: {error}"
        ) from error


def loss_of(model: nn.Module, sequence: Any, loss_fn: LossFn) -> Tensor:
    """The loss on a sequence, 0-d.

    Raises:
        ValueError: it is not one finite number, or has no gradient where one is wanted.
    """
    loss = loss_fn(model, sequence)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite().all()):
        raise ValueError(f"loss_fn must return one finite number as a tensor, got {loss!r}")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError("loss_fn must return a loss that depends on the model's weights")
    return loss.sum()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own flag returns, also after an error.

    Without the fused kernels of attention: behind a padding mask they hand nested tensors to the layers.
    """
    flags = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.clear_autocast_cache()  # of casts of weights that have been pruned since
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in flags:
            module.training = training


def gradient_sizes(
    model: nn.Module, layers: Mapping[str, nn.Module], sequences: Sequence[Any], loss_fn: LossFn, power: int
) -> dict[str, Tensor]:
    """(Σ_n |g_n|^power)^(1/power) for each layer's weight, with g_n the gradient of sequence n alone.

    In evaluation mode and at least float32. ``.grad`` of the parameters is neither read nor written.

    Raises:
        ValueError: a loss is not one finite number; a layer gets no gradient from any sequence.
    """
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    needed = [(weight, weight.requires_grad) for weight in weights.values()]
    sums = {name: torch.zeros_like(w, dtype=at_least_float(w)) for name, w in weights.items()}
    heard: set[str] = set()
    try:
        for weight, _ in needed:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for sequence in sequences:
                loss = loss_of(model, sequence, loss_fn)
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        heard.add(name)
                        sums[name] += gradient.to(sums[name].dtype).abs() ** power
    finally:
        for weight, flag in needed:
            weight.requires_grad_(flag)
    for name, layer in layers.items():
        refuse_unless(name in heard, name, layer, "reached by the gradient of the loss")
        if not bool(sums[name].isfinite().all()):
            raise ValueError(f"layer {name!r} must have finite gradients on the sequences")
    return {name: total ** (1 / power) for name, total in sums.items()}


def input_norms(
    model: nn.Module, layers: Mapping[str, nn.Module], sequences: Sequence[Any], loss_fn: LossFn | None
) -> dict[str, Tensor]:
    """(1/N · Σ over sequences and tokens of x_j²)^(1/2) for each input j of each linear layer: [in].

    Raises:
        ValueError: a layer does not run on any sequence, or has an input that is not finite.
    """
    sums: dict[str, Tensor] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            squares = x.to(at_least_float(x)).square().flatten(0, -2).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    handles = [layer.register_forward_pre_hook(hear(name)) for name, layer in layers.items()]
    try:
        with evaluating(model), torch.no_grad():
            for sequence in sequences:
                run(model, sequence, loss_fn)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        refuse_unless(name in sums, name, layer, "run by the model on the sequences")
        if not bool(sums[name].isfinite().all()):
            raise ValueError(f"layer {name!r} must have finite inputs on the sequences")
    return {name: (sums[name] / len(sequences)).sqrt() for name in layers}


def stages(
    model: nn.Module, layers: Mapping[str, nn.Module], sequence: Any, loss_fn: LossFn | None
) -> list[list[str]]:
    """The layers in the order in which they run, those of one repeated block together."""
    order: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
        for name, layer in layers.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            run(model, sequence, loss_fn)
    finally:
        for handle in handles:
            handle.remove()
    blocks = list(blocks_of(model))
    groups: dict[str, list[str]] = {}
    # What this sequence does not run comes last; another sequence may run it.
    for name in dict.fromkeys([*order, *layers]):
        owner = next((block for block in blocks if name.startswith(f"{block}.")), name)
        groups.setdefault(owner, []).append(name)
    return list(groups.values())


def at_least_float(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
