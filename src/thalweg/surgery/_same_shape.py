"""Two models that can be merged: the same weights by name and shape, tied alike, and all there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from thalweg._core.checks import nearest
from thalweg.surgery._edit import bare, copied


def pair(
    model: nn.Module, reference: nn.Module, names: tuple[str, str] = ("model", "reference")
) -> tuple[nn.Module, nn.Module]:
    """A copy of ``model`` to edit, and ``reference`` without wrappers; ``names`` are those of the arguments.

    Where the two differ in floating-point types, a copy of ``reference`` in those of ``model``.

    Raises:
        ValueError: they do not fit, or one cannot be edited; the weight is named.
    """
    one, two = names
    new = copied(model, one)
    if not isinstance(reference, nn.Module):
        raise ValueError(f"{two} must be a torch.nn.Module, got {type(reference).__name__}")
    other = bare(reference)
    given, wanted = dict(other.named_parameters()), dict(new.named_parameters())
    for name, p in wanted.items():
        if name not in given:
            raise ValueError(
                f"reference must have a weight {name!r} like model, got none{nearest(name, given)}"
            )
        if given[name].is_meta:
            raise ValueError(f"{two} must hold its weights, got {name!r} on the meta device")
        if given[name].shape != p.shape:
            raise ValueError(
                f"{two} must have {name!r} of shape {tuple(p.shape)} like {one}, "
                f"got {tuple(given[name].shape)}"
            )
    for name in given.keys() - wanted.keys():
        every = dict(new.named_parameters(remove_duplicate=False))
        how = "one tied to another" if name in every else "none"
        raise ValueError(f"{one} must have a weight {name!r} of its own like {two}, got {how}")
    if any(given[name].dtype != p.dtype for name, p in wanted.items()):
        other = _in_types_of(new, other, two)
        given = dict(other.named_parameters())
    for argument, weights in ((one, wanted), (two, given)):
        _finite(argument, weights)
    _own_memory(bare(model), one)
    return new, other


@torch.no_grad()
def _in_types_of(model: nn.Module, reference: nn.Module, argument: str) -> nn.Module:
    wanted = dict(model.named_parameters()) | dict(model.named_buffers())
    made = copied(reference, argument)
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        like = wanted.get(name)
        if like is not None and tensor.is_floating_point() and like.is_floating_point():
            tensor.grad = None
            tensor.data = tensor.to(like.dtype)
    return made


def _finite(argument: str, weights: Mapping[str, Tensor]) -> None:
    real = all(p.is_floating_point() for p in weights.values())
    # One number says most; only what overflows needs a second look.
    if real and bool(get_total_norm([p.detach() for p in weights.values()]).isfinite()):
        return
    for name, p in weights.items():
        if not p.is_floating_point() or not bool(p.isfinite().all()):
            raise ValueError(f"{argument} must have finite real weights, got {name!r} of {p.dtype}")


def _own_memory(model: nn.Module, argument: str) -> None:
    """Refuse weights that share memory without being one tensor: permuting one would permute the other."""
    found: dict[int, tuple[str, int]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        start = p.untyped_storage().data_ptr()
        other, tensor = found.setdefault(start, (name, id(p)))
        if tensor != id(p) and p.numel():
            raise ValueError(
                f"{argument} must hold each weight in memory of its own (or tie the tensor itself), "
                f"got {name!r} in the memory of {other!r}"
            )
