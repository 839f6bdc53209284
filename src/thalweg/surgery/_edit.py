"""What edits share: a copy to work on, refusals that name the module, the report of what changed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg._core.checks import check_names, nearest
from thalweg.surgery._references import refuse_captured

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class LayerEdit:
    """What an edit did to one module.

    Attributes:
        what: in words, such as ``"rank 12 of 64"``.
        bytes_before, bytes_after: of its parameters and buffers, in the format that the
            edit's docstring names.
        error: relative Frobenius error of its weight, ‖W' - W‖ / ‖W‖, 0 for none.
    """

    what: str
    bytes_before: int
    bytes_after: int
    error: float


@dataclass(frozen=True)
class EditReport:
    """What an edit did to a model; ``print`` shows a line a module.

    Attributes:
        layers: name of each module looked at to its :class:`LayerEdit`, in the model's order.
        bytes_before, bytes_after: of all parameters and buffers of the model, each storage counted once.
    """

    layers: dict[str, LayerEdit]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers, {self.bytes_before:,} -> {self.bytes_after:,} bytes"]
        for name, edit in self.layers.items():
            size = f"{edit.bytes_before:,} -> {edit.bytes_after:,} bytes"
            lines.append(f"  {name}: {edit.what}, {size}, error {edit.error:.3g}")
        return "\n".join(lines)


def report(model: nn.Module, layers: dict[str, LayerEdit]) -> EditReport:
    """The report on ``model``, which is the one before the edit."""
    before = size_in_bytes(model)
    saved = sum(edit.bytes_before - edit.bytes_after for edit in layers.values())
    return EditReport(layers, before, before - saved)


def size_in_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; what is held twice counts once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def relative_error(before: Tensor, after: Tensor) -> float:
    """‖after - before‖ / ‖before‖ in float64; 0 where both are zero."""
    before, after = before.detach().double(), after.detach().double()
    size = torch.linalg.vector_norm(before).item()
    moved = torch.linalg.vector_norm(after - before).item()
    return moved / size if size > 0 else (0.0 if moved == 0 else float("inf"))


def copied(model: nn.Module, argument: str = "model") -> nn.Module:
    """A deep copy to edit (behind DDP, DataParallel and torch.compile, of the module inside).

    Raises:
        ValueError: it is no module, has a tensor on the meta device or cannot be copied.
    """
    model = checked(model, argument)
    refuse_captured(model, argument)
    # Weights that hooks make of others (weight_norm, torch's own prune) have a graph, and are made anew.
    made = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in made})
    except Exception as error:
        raise ValueError(
            f"{argument} must be copyable by copy.deepcopy, got {type(model).__name__} with "
            f"{type(error).__name__}: {error}"
        ) from error


def copied_with(
    model: nn.Module, layers: Iterable[str] | None, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A copy to edit and its layers to edit, as :func:`chosen_layers` chooses and checks them."""
    # On the given model: a deep copy parts two parameters that lie in one storage.
    names = list(chosen_layers(checked(model), layers, kinds))
    new = copied(model)
    return new, {name: new.get_submodule(name) for name in names}


def checked(model: nn.Module, argument: str = "model") -> nn.Module:
    """The module itself, behind wrappers, if its weights are there."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{argument} must be a torch.nn.Module, got {type(model).__name__}")
    model = bare(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ValueError(f"{argument} must have its weights made, got the lazy tensor {name!r}")
        if tensor.is_meta:
            raise ValueError(f"{argument} must hold its weights, got {name!r} on the meta device")
    return model


def bare(model: nn.Module) -> nn.Module:
    """The module behind DDP, DataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``name`` stands, in training mode, and compiled, if what stood there was."""
    parent, _, child = name.rpartition(".")
    new.train(model.get_submodule(name).training)
    above: Any = model.get_submodule(parent)
    if isinstance(getattr(above, "_orig_mod", None), nn.Module):
        # What torch.compile gave runs the module that it was made with.
        replace_module(model, parent, type(above)(new, above.dynamo_ctx))
    else:
        setattr(above, child, new)


def inner_layers(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)) -> list[str]:
    """Names of the layers that compression papers mean: those in the blocks that the model repeats.

    Blocks are modules of one class, with layers inside, that stand beside one another in a ``ModuleList`` or
    ``Sequential``. A model that repeats nothing counts every layer but the last one registered.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    blocks = tuple(f"{block}." for block in blocks_of(model))
    return [name for name in names if name.startswith(blocks)] if blocks else names[:-1]


def blocks_of(model: nn.Module) -> Iterator[str]:
    """Names of the modules that the model repeats, the outermost ones."""
    found: list[str] = []
    for row_name, row in model.named_modules():
        if not isinstance(row, nn.Sequential | nn.ModuleList) or row_name.startswith(tuple(found)):
            continue
        made = {n: m for n, m in row.named_children() if not isinstance(m, CONTAINERS) and any(m.children())}
        count = Counter(map(type, made.values()))
        inside = [f"{row_name}.{n}" if row_name else n for n, m in made.items() if count[type(m)] > 1]
        found += [f"{name}." for name in inside]
        yield from inside


def chosen_layers(
    model: nn.Module,
    layers: Iterable[str] | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> dict[str, nn.Module]:
    """The layers to edit, by name, each with a weight that is its own.

    Args:
        layers: names of modules; None for :func:`inner_layers`.
        kinds: exact classes that the edit understands.

    Raises:
        ValueError: there is none; one is unknown, of another class (a subclass may use its weight in ways of
            its own), parametrized, shared, tied to another module, not finite or not floating point.
    """
    allowed = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(layers, str):
        raise ValueError(f"layers must be several names of modules, got the string {layers!r}")
    names = inner_layers(model, kinds) if layers is None else check_names("layers", layers)
    known = dict(model.named_modules(remove_duplicate=False))
    if not names:
        raise ValueError(
            f"layers must name at least one {allowed}, got none" + (_others(model) if layers is None else "")
        )
    hint = ""
    if layers is None:
        fine = [name for name in names if type(known[name]) in kinds]
        hint = f"; layers=[...] names what to edit instead{f', such as {fine[0]!r}' if fine else ''}"
    places = Counter(map(id, known.values()))
    params: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    chosen: dict[str, nn.Module] = {}
    for name in names:
        if name not in known:
            raise ValueError(
                f"layers must name modules of the model, got {name!r}{nearest(str(name), known)}"
            )
        module = known[name]
        plain = type(module) in kinds or parametrize.is_parametrized(module)
        refuse_unless(plain, name, module, f"a {allowed}{hint}")
        refuse_unless(not parametrize.is_parametrized(module), name, module, "without parametrizations")
        refuse_unless(places[id(module)] == 1, name, module, "in one place of the model, not shared")
        weight = module.weight
        refuse_unless(
            type(weight) is nn.Parameter, name, module, f"with a plain weight, got {type(weight).__name__}"
        )
        assert isinstance(weight, nn.Parameter)
        others = sharing(weight, params) - {f"{name}.weight"}
        refuse_unless(not others, name, module, f"with a weight of its own, got one tied to {sorted(others)}")
        refuse_unless(weight.is_floating_point() and weight.numel() > 0, name, module, "with real weights")
        refuse_unless(bool(weight.isfinite().all()), name, module, "with finite weights")
        chosen[name] = module
    if len(set(names)) < len(names):
        raise ValueError(
            f"layers must be different, got {[n for n, c in Counter(names).items() if c > 1]} twice"
        )
    return chosen


def _others(model: nn.Module) -> str:
    """For the end of an error message: what a model without layers to edit keeps its weights in."""
    kept = (
        f", but {name!r} ({type(module).__name__})"
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear | nn.Embedding)
        and any(p.dim() > 1 for p in module.parameters(recurse=False))
    )
    return f"; {type(model).__name__} has none in its blocks or before its last layer{next(kept, '')}"


def weight_of(layer: nn.Module) -> nn.Parameter:
    """The weight of a layer that :func:`chosen_layers` has checked."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def refuse_unless(fine: bool, name: str, module: nn.Module, allowed: str) -> None:
    """Raise a ValueError that names the module unless it is fine."""
    if not fine:
        raise ValueError(f"layer {name!r} ({type(module).__name__}) must be {allowed}")


def sharing(weight: Tensor, params: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that lie in the same memory."""
    start, end = _span(weight)
    device = weight.device
    return {
        name
        for name, p in params.items()
        if p.device == device and (bounds := _span(p))[0] < end and start < bounds[1]
    }


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte and of the one after the last."""
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    length = (reach + 1) * tensor.element_size() if tensor.numel() else 0
    return tensor.data_ptr(), tensor.data_ptr() + length
