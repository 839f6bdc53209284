"""Checkpoints as weights that fit a model: names, wrappings, shapes, and which weights make a layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from thalweg._core.checks import check_names, nearest
from thalweg.probe._wrapped import check_module

Checkpoint = nn.Module | Mapping[str, Tensor]
Weights = dict[str, Tensor]


def bare(model: nn.Module) -> nn.Module:
    """The model inside DDP, torch.compile or weight averaging."""
    check_module(model)
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel | AveragedModel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def moving(model: nn.Module) -> Weights:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def weights_of(
    name: str, checkpoint: Checkpoint, model: nn.Module, statistics: Collection[str] = ()
) -> Weights:
    """The entries of ``checkpoint`` that ``model`` has, checked; shares memory with it.

    Args:
        statistics: buffers that it must hold like a parameter. Others are the model's own where it has none.
    """
    if isinstance(checkpoint, nn.Module):
        checkpoint = moving(bare(checkpoint))
    elif not isinstance(checkpoint, Mapping):
        raise ValueError(f"{name} must be a model or a state dict, got {type(checkpoint).__name__}")
    wanted = moving(model)
    known = {*wanted, *model.state_dict()}
    given = {_plain(str(key), known): value for key, value in checkpoint.items()}
    strange = [key for key in given if key not in known and key != "n_averaged"]
    inner = [key for key in strange if isinstance(given[key], Mapping) and given[key]]
    if inner:
        at = " or ".join(map(repr, inner))
        raise ValueError(f"{name} must be a state dict, got a mapping that may hold it at {at}")
    if strange:
        raise ValueError(
            f"{name} must fit the model, which has no {strange[0]!r}{nearest(strange[0], known)}"
        )
    params = {key for key, _ in model.named_parameters()}
    ties = _ties(model)
    found = {}
    for key, own in wanted.items():
        value = given.get(key)
        for tied in ties.get(key, ()):
            other = given.get(tied)
            value = other if value is None else value
            if isinstance(value, Tensor) and isinstance(other, Tensor) and not _same(value, other):
                raise ValueError(f"{name}[{tied!r}] must equal {name}[{key!r}], to which the model ties it")
        if value is None and key in params:
            raise ValueError(f"{name} must hold every parameter of the model, got none for {key!r}")
        if value is None and key in statistics:
            raise ValueError(
                f"{name} must hold the normalisation statistics of the model, got none for {key!r}; give "
                "norm_batches to recompute them"
            )
        if value is None:
            value = own  # buffers that are not saved are the model's own
        if not isinstance(value, Tensor) or value.shape != own.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}[{key!r}] must have shape {tuple(own.shape)}, got {got}")
        if value.is_meta and not own.is_meta:
            raise ValueError(f"{name}[{key!r}] must have values, got a tensor on the meta device")
        if key in params and not (value.is_floating_point() or value.is_complex()):
            raise ValueError(
                f"{name}[{key!r}] must be of a floating type, got {value.dtype}: codes of quantized weights "
                "are no weights"
            )
        found[key] = value.detach()
    return found


def _ties(model: nn.Module) -> dict[str, list[str]]:
    """Parameter to the other names that it has in the model."""
    first = {id(p): key for key, p in model.named_parameters()}
    ties: dict[str, list[str]] = {}
    for key, p in model.named_parameters(remove_duplicate=False):
        if key != first[id(p)]:
            ties.setdefault(first[id(p)], []).append(key)
    return ties


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other.to(one.device))


def _plain(key: str, known: Collection[str]) -> str:
    """The key without what DDP, torch.compile and weight averaging put before it."""
    for wrapping in ("_orig_mod.", "module."):
        if key not in known:
            key = key.replace("_orig_mod.", "") if wrapping == "_orig_mod." else key.removeprefix(wrapping)
    return key


def distance(points: Sequence[Weights], names: Iterable[str]) -> float:
    """Euclidean length of the second point minus the first over the entries ``names``."""
    start, end = points[:2]
    steps = (end[name].to(start[name].device).double() - start[name].double() for name in names)
    return math.sqrt(sum(float(step.square().sum()) for step in steps))


def layer_parameters(model: nn.Module, layers: Iterable[str] | None) -> dict[str, list[str]]:
    """Layer to the names of what belongs to it: everything at or below the module of that name.

    Without ``layers``, the modules that hold parameters of their own.
    """
    names = list(moving(model))
    params = [name for name, _ in model.named_parameters()]
    if layers is None:
        owners = {name: name.rpartition(".")[0] or name for name in names}
        held = dict.fromkeys(owners[name] for name in params)
        return {layer: [name for name in names if owners[name] == layer] for layer in held}
    found = {}
    for layer in check_names("layers", layers):
        own = [name for name in names if name == layer or name.startswith(f"{layer}.")]
        if not any(name in params for name in own):
            others = {tie: first for first, those in _ties(model).items() for tie in those}
            tied = [first for tie, first in others.items() if tie == layer or tie.startswith(f"{layer}.")]
            if tied:
                raise ValueError(
                    f"layers must name modules with parameters of their own, got {layer!r}, whose weight is "
                    f"tied to {tied[0]!r}: name that one's module"
                )
            options = [name for name, _ in model.named_modules()] + params
            hint = nearest(str(layer), options)
            raise ValueError(f"layers must name modules with parameters, got {layer!r}{hint}")
        found[layer] = own
    if not found:
        raise ValueError("layers must name at least one module, got none")
    return found
