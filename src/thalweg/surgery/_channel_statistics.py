"""Mean and spread of what layers put out, channel by channel, and the correction that gives them others.

Corrections of arXiv 2402.05966: with mean m and standard deviation s of a channel, and goals m* and s*,
repair is (z - m) s*/s + m*, rescale z s*/s, reshift z - m + m*. The paper's code adds a little to variances;
here channels that hardly vary are left out instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from thalweg.surgery._axis_run import run, undisturbed
from thalweg.surgery._edit import chosen_layers, refuse_unless

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
HOWS = ("repair", "rescale", "reshift")
LEAST = 1e-4  # a channel whose spread, relative to its layer's median, is at most this is left alone


@dataclass(frozen=True)
class Channels:
    """Float64 mean and variance of each output channel of a layer, over all samples and places."""

    mean: Tensor
    variance: Tensor

    @property
    def spread(self) -> Tensor:
        return self.variance.sqrt()


class _Sums:
    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.runs = 0

    def add(self, layer: nn.Module, made: Tensor) -> None:
        # A convolution's output has as many axes as its weight, less one where there is no batch.
        dim = made.dim() - (1 if isinstance(layer, nn.Linear) else len(layer.weight.shape) - 1)  # type: ignore[arg-type]
        rows = made.detach().double().movedim(dim, 0).flatten(1)
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(1)
        self.square = self.square + rows.square().sum(1)

    def found(self) -> Channels:
        mean = torch.as_tensor(self.total) / self.count
        variance = (torch.as_tensor(self.square) / self.count - mean.square()).clamp(min=0)
        return Channels(mean, variance)


def measure(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, Channels]:
    """Statistics of the outputs of ``layers`` over all batches, in evaluation mode.

    Raises:
        ValueError: there is no batch, the model does not run on one, or a layer does not run once a batch.
    """
    sums = {name: _Sums() for name in layers}
    count = 0

    def hear(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: Any, made: Tensor) -> None:
            sums[name].runs += 1
            sums[name].add(layer, made)

        return hook

    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hear(name)).remove)
        for batch in batches:
            count += 1
            try:
                run(model, batch)
            except Exception as error:
                raise ValueError(
                    f"batches must hold what {type(model).__name__} runs on, got "
                    f"{type(error).__name__}: {error}"
                ) from error
    if not count:
        raise ValueError("batches must hold at least one batch, got none")
    for name, layer in layers.items():
        refuse_unless(sums[name].runs == count, name, layer, f"run once a batch, not {sums[name].runs} times")
    return {name: found.found() for name, found in sums.items()}


def layers_to_correct(model: nn.Module, batch: Any, layers: Iterable[str] | None) -> list[str]:
    """Names in the order in which they run: those given, or all but the last and those before a batch norm.

    Raises:
        ValueError: one cannot be edited (it is named), or none is left.
    """
    ran: list[str] = []
    makes: dict[int, str] = {}
    kept: list[Tensor] = []  # an id belongs to a tensor only while it lives
    normed: set[str] = set()

    def hear(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: Any, made: Tensor) -> None:
            ran.append(name)
            makes[id(made)] = name
            kept.append(made)

        return hook

    def read(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        normed.add(makes.get(id(given[0]), ""))

    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for name, module in model.named_modules():
            if isinstance(module, KINDS):
                stack.callback(module.register_forward_hook(hear(name)).remove)
            if isinstance(module, _NormBase) and module.track_running_stats:
                stack.callback(module.register_forward_pre_hook(read).remove)
        try:
            run(model, batch)
        except Exception as error:
            raise ValueError(
                f"batches must hold what {type(model).__name__} runs on, got {type(error).__name__}: {error}"
            ) from error
    names = list(dict.fromkeys(ran))
    if layers is not None:
        wanted = list(chosen_layers(model, layers, KINDS))
        return sorted(wanted, key=lambda name: names.index(name) if name in names else len(names))
    names = [name for name in names[:-1] if name not in normed]
    return list(chosen_layers(model, names, KINDS)) if names else []


@torch.no_grad()
def correct(layer: Any, own: Channels, goal: Channels, how: str) -> int:
    """Fold the correction into weight and bias; how many channels were too quiet to be corrected."""
    quiet = own.spread <= LEAST * own.spread.median()
    scale = torch.where(quiet, 1.0, goal.spread / own.spread)
    shift = torch.zeros_like(scale)
    if how == "repair":
        shift = goal.mean - scale * own.mean
    elif how == "reshift":
        scale, shift = torch.ones_like(scale), goal.mean - own.mean
    shift = torch.where(quiet, 0.0, shift)
    weight = layer.weight
    scale = scale.to(weight.device)
    # Channels by filter: (out, in, ...), or transposed (groups x in, out, ...).
    groups = layer.groups if isinstance(layer, TRANSPOSED) else 1
    blocks = weight.double().unflatten(0, (groups, -1))
    rows = [groups, 1, -1] if isinstance(layer, TRANSPOSED) else [1, -1, 1]
    factors = scale.view(*rows, *[1] * (weight.dim() - 2))
    weight.copy_((blocks * factors).flatten(0, 1).to(weight.dtype))
    if layer.bias is not None:
        layer.bias.copy_((layer.bias.double() * scale + shift.to(scale.device)).to(weight.dtype))
    elif how != "rescale":
        layer.bias = nn.Parameter(shift.to(weight))
    return int(quiet.sum())


def refresh_norms(model: nn.Module, batches: Iterable[Any]) -> tuple[str, ...]:
    """Gather the running statistics of batch normalisation anew: the mean over the batches.

    Raises:
        ValueError: there is no batch, or the model does not run on one.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    }
    if not norms:
        return ()
    with undisturbed(model):
        momenta = {name: norm.momentum for name, norm in norms.items()}
        count = 0
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for batch in batches:
                count += 1
                try:
                    run(model, batch)
                except Exception as error:
                    raise ValueError(
                        f"batches must hold what {type(model).__name__} runs on, got "
                        f"{type(error).__name__}: {error}"
                    ) from error
        finally:
            for name, norm in norms.items():
                norm.momentum = momenta[name]
    if not count:
        raise ValueError("batches must hold at least one batch, got none")
    return tuple(norms)
