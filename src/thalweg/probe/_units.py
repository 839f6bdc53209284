"""Hidden units as a probe sees them: which modules make them, and their values row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_names
from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._quiet import call, listening, modules_named, quiet

Hear = Callable[[str, Tensor], None]
Found = TypeVar("Found")

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.GLU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)


def is_activation(module: nn.Module) -> bool:
    """One of torch.nn, one of those that Hugging Face's models are built with, or one that says so."""
    known = isinstance(module, ACTIVATIONS) or type(module).__module__ == "transformers.activations"
    return known or getattr(module, "is_activation", None) is True


class NoActivationsError(ValueError):
    """The model has no activation that could be heard, as a module or as a function call."""

    def __init__(self, remedy: str) -> None:
        super().__init__(
            "model has no activation modules and calls no activation function of torch that could be heard; "
            + remedy
        )


NAME_THEM = (
    "name the modules that return activations with layers=, or those that read them (the linear layer that "
    "follows) with inputs_of=, got neither"
)


def activations(model: nn.Module) -> dict[str, nn.Module]:
    """Name to activation module; empty if all activations are function calls."""
    return {name: module for name, module in model.named_modules() if is_activation(module)}


def chosen(
    model: nn.Module, layers: Iterable[str] | None, inputs_of: Iterable[str] | None
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Modules to listen to on their way out and on their way in.

    Raises:
        ValueError: the model has no module of a name, or a name stands in both.
    """
    outputs = modules_named(model, check_names("layers", layers or ()))
    inputs = modules_named(model, check_names("inputs_of", inputs_of or ()))
    if both := outputs.keys() & inputs.keys():
        raise ValueError(f"inputs_of must name other modules than layers, got {sorted(both)[0]!r} in both")
    return outputs, inputs


def first_tensor(name: str, positional: tuple, keywords: dict[str, Any]) -> Tensor:
    """The first argument of a layer's call.

    Raises:
        ValueError: it is no tensor.
    """
    first = next(iter((*positional, *keywords.values())), None)
    if not isinstance(first, Tensor):
        raise ValueError(f"layer {name!r} must be given a tensor, got {type(first).__name__}")
    return first


@contextmanager
def _step_by_step() -> Iterator[None]:
    """Without the single kernel in which torch's own transformer layers evaluate: nothing is seen of it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def run_quietly(model: nn.Module, batch: Any) -> Any:
    with quiet(model), _step_by_step():
        return call(model, batch)


def overhear(
    model: nn.Module,
    batch: Any,
    outputs: Mapping[str, nn.Module],
    inputs: Mapping[str, nn.Module],
    hear: Hear,
    *,
    all_run: bool = True,
) -> Any:
    """Run the model once, quietly; ``hear(run, tensor)`` for what goes out of and into the modules.

    A run is called as its module; the second run of a module is ``name[1]``. The tensor is the live one: a
    later operation in place may overwrite it.

    Returns:
        What the model returned.

    Raises:
        ValueError: no module ran, or ``all_run`` and one did not; a module passes no tensor.
    """
    runs = dict.fromkeys([*outputs, *inputs], 0)

    def count(name: str, tensor: Tensor) -> None:
        hear(f"{name}[{runs[name]}]" if runs[name] else name, tensor.detach())
        runs[name] += 1

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, positional: tuple, keywords: dict[str, Any]) -> None:
            count(name, first_tensor(name, positional, keywords))

        return hook

    with ExitStack() as stack:
        stack.enter_context(listening(outputs, count))
        for name, module in inputs.items():
            handle = module.register_forward_pre_hook(before(name), with_kwargs=True)
            stack.callback(handle.remove)
        result = run_quietly(model, batch)
    silent = [name for name, times in runs.items() if not times]
    if len(silent) == len(runs) or (all_run and silent):
        raise ValueError(f"layers must run when the model is called, got {', '.join(silent) or 'none'}")
    return result


def some(found: dict[str, Found]) -> dict[str, Found]:
    """What was found by layer.

    Raises:
        ValueError: that is nothing, since no example came to any of the layers.
    """
    if not found:
        raise ValueError("batch must bring an example to at least one of the layers, got none")
    return found


def no_units(name: str, shape: torch.Size) -> ValueError:
    return ValueError(f"layer {name!r} must return (batch, units, ...), got shape {tuple(shape)}")


def unit_rows(name: str, values: Tensor, unit_dim: int | None) -> Tensor:
    """One row a unit, shape (units, everything else), in float32 at least.

    Raises:
        ValueError: ``values`` has no batch and unit dimension, or is not finite.
    """
    if unit_dim is None:
        if values.dim() < 2:
            raise no_units(name, values.shape)
        unit_dim = -1 if values.dim() == 3 else 1
    elif not -values.dim() <= unit_dim < values.dim():
        raise ValueError(f"unit_dim must be a dimension of {tuple(values.shape)} of {name!r}, got {unit_dim}")
    rows = values.movedim(unit_dim, 0).flatten(1).to(torch.promote_types(values.dtype, torch.float32))
    # One reduction over the sum: finite entries cannot add up to NaN, and infinity is an error anyway.
    if not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
        raise NotFiniteError(f"layer {name!r} must return finite activations, got NaN or infinity")
    return rows
