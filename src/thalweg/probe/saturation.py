"""Saturated units: their activation is flat wherever the data put them; and units that it never bends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg._core.checks import check_names, check_number, check_positive
from thalweg.probe._hidden import overhear_inputs
from thalweg.probe._quiet import modules_named
from thalweg.probe._sequences import as_sequences
from thalweg.probe._units import overhear, some, unit_rows
from thalweg.probe._wrapped import bare, of_all_processes, on_every_rank, one_state, over_processes
from thalweg.probe.cost import costs
from thalweg.probe.neurons import share as shares

__all__ = ["SaturatedUnits", "saturated_units"]

Activation = Callable[[Tensor], Tensor]

NAME_THEM = (
    "give layers= as a mapping from the modules that make pre-activations to the function that follows "
    "(inputs_of= of the other probes hears activations, not what enters them), got layers=None"
)


@dataclass(frozen=True)
class SaturatedUnits:
    """Which hidden units pass (almost) no gradient, and which bend nothing.

    Attributes:
        fraction: layer to the share of its units that are saturated, in [0, 1].
        total: saturated units over all units of all layers.
        flat: layer to the share of the batch on which each unit's slope is at most ``slope``, shape (units,).
        linear: layer to the share of its units that are not saturated and whose slope is the same, to within
            ``slope``, on the whole batch: a ReLU that is always on.
        total_linear: such units over all units of all layers.
        slope, share: as given.
    """

    fraction: dict[str, float]
    total: float
    flat: dict[str, Tensor]
    linear: dict[str, float]
    total_linear: float
    slope: float
    share: float


def _slope(name: str, activation: Activation, values: Tensor) -> Tensor:
    """The activation's derivative at each entry of ``values``."""
    if isinstance(activation, nn.GLU):
        raise ValueError(f"layers must act on each unit alone, got {name!r} (GLU)")
    plain = not (isinstance(activation, nn.Module) and any(True for _ in activation.parameters()))
    wide = torch.promote_types(values.dtype, torch.float32) if plain else values.dtype
    with torch.enable_grad():
        z = values.detach().to(wide).clone().requires_grad_()
        # forward: a call would run the hooks again. A copy: the activation may work in place.
        run = activation.forward if isinstance(activation, nn.Module) else activation
        out = run(z.clone())
        if not isinstance(out, Tensor) or out.shape != z.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"activation of {name!r} must keep the shape {tuple(z.shape)}, got {got}")
        if not out.requires_grad:
            return torch.zeros_like(z)
        (slope,) = torch.autograd.grad(out.sum(), z)
    return slope.abs()


def _overhear(
    model: nn.Module,
    batch: Any,
    layers: Iterable[str] | Mapping[str, Activation] | None,
    hear: Callable[[str, Activation, Tensor], None],
) -> None:
    """``hear(run, activation, its input)`` for each of the layers."""
    outputs: dict[str, nn.Module] = {}
    inputs: dict[str, nn.Module] = {}
    functions: Mapping[str, Activation] = {}
    if isinstance(layers, Mapping):
        outputs, functions = modules_named(model, layers), layers
    elif layers is not None:
        functions = inputs = modules_named(model, check_names("layers", layers))
    else:
        overhear_inputs(model, batch, hear, NAME_THEM)
        return

    def known(run: str, values: Tensor) -> None:
        hear(run, functions[run.rpartition("[")[0] or run], values)

    overhear(model, batch, outputs, inputs, known)


@costs(1, 0, memory="four copies of one layer's activations, one layer at a time")
def saturated_units(
    model: nn.Module,
    batch: Any,
    *,
    slope: float = 0.005,
    share: float = 0.99,
    layers: Iterable[str] | Mapping[str, Activation] | None = None,
    unit_dim: int | None = None,
    group: Any = None,
) -> SaturatedUnits:
    r"""Units with :math:`|\phi'(z)| \le` ``slope`` on a ``share`` of the batch, from the exact derivative.

    One measure for every activation: tanh beyond ±3.34 and a sigmoid beyond ±5.29 at the default slope, a
    ReLU below zero (a saturated ReLU is a dead one), a GELU or SiLU far below zero. That plasticity can be
    lost without saturated units is a finding of arXiv 2303.01486: read this next to :func:`plasticity`.
    Images and sequences count every position as a case.

    Args:
        model: run once in evaluation mode without gradients; its ``training`` flags are put back. Behind DDP
            or ``torch.compile`` the module itself is run.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        slope: greater than 0, in units of output over input. The default lies below the 0.01 of a leaky ReLU.
        share: in (0, 1].
        layers: names of activation modules; by default every one of ``torch.nn`` or ``transformers`` except
            GLU, and the activation functions that the model calls, named as for :func:`dormant_neurons`, that
            of the output too. For others: a mapping from the modules whose outputs go in to the function,
            such as ``{"hidden": quick_gelu}``.
        unit_dim, group: as for :func:`dormant_neurons`.

    Raises:
        ValueError: no layer, an unknown one, one that did not run or does not act on each unit alone; a
            tensor that is not finite or has no unit dimension; ``slope`` or ``share`` out of range.
    """
    slope = check_positive("slope", slope)
    share = check_number("share", share, 0, 1, "(]")
    model = bare(model)
    cases: dict[str, Tensor] = {}
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}

    def measure(run: str, function: Activation, values: Tensor) -> None:
        slopes = _slope(run, function, values)
        slopes = unit_rows(run, arranged(slopes) if unit_dim is None else slopes, unit_dim)
        flat = (slopes <= slope).sum(1)
        cases[run] = torch.cat([flat, flat.new_tensor([slopes.shape[1]])])
        # Padded, for an expert to which no example went.
        lowest[run] = functional.pad(slopes, (0, 1), value=torch.inf).amin(1)
        highest[run] = functional.pad(slopes, (0, 1), value=-torch.inf).amax(1)

    with one_state(model, group), as_sequences(model) as arranged:
        on_every_rank(lambda: _overhear(model, batch, layers, measure), group, model)
    flat, full, linear = {}, {}, {}
    lowest, highest = (
        of_all_processes(found, group, fill) for found, fill in ((lowest, torch.inf), (highest, -torch.inf))
    )
    for run, packed in of_all_processes(cases, group).items():
        packed = over_processes(packed, group)
        low, high = (
            over_processes(tensor[run], group, how) for tensor, how in ((lowest, "min"), (highest, "max"))
        )
        if not packed[-1] > 0:
            continue
        flat[run] = packed[:-1].double() / packed[-1]
        full[run] = flat[run] >= share
        linear[run] = ~full[run] & (high - low <= slope)
    return SaturatedUnits(*shares(some(full)), flat, *shares(linear), slope, share)
