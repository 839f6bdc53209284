"""Rounding weights to a few bits, with the most sensitive ones kept (GWQ, arXiv 2411.00850)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_count, check_unit_interval
from thalweg.surgery._calibration import LossFn, at_least_float, checked_sequences, gradient_sizes
from thalweg.surgery._edit import (
    EditReport,
    LayerEdit,
    copied_with,
    refuse_unless,
    relative_error,
    replace_module,
    report,
    size_in_bytes,
    weight_of,
)
from thalweg.surgery._masks import checked_scores
from thalweg.surgery._references import refuse_listed
from thalweg.surgery.quantized_linear import QuantizedLinear

__all__ = ["quantize"]

PROTECTIONS = ("gradient", "magnitude", "product", "random")
LARGEST = torch.finfo(torch.float16).max


@torch.no_grad()
def quantize(
    model: nn.Module,
    bits: int = 4,
    group: int | None = 128,
    *,
    keep: float = 0.01,
    protect: str | Mapping[str, Tensor] = "gradient",
    sequences: Any = None,
    loss_fn: LossFn | None = None,
    layers: Iterable[str] | None = None,
    scope: str = "layer",
    seed: int = 0,
) -> tuple[nn.Module, EditReport]:
    r"""Round the weights of linear layers to nearest in groups, but for a few that stay in 16 bits.

    Kept are the entries with the largest gradient (GWQ, arXiv 2411.00850): :math:`\sum_n g_n^2` over the
    calibration sequences, in evaluation mode. The others, in groups of consecutive inputs of one output:
    :math:`q = \mathrm{clamp}(\mathrm{round}(w / s) + z, 0, 2^b - 1)`, with the step s from the range of the
    group, 0 included, that is left when kept entries are taken out. s is rounded to float16 before its use.
    ``keep=0`` is plain rounding to nearest. No error is compensated, activations stay as they are.

    Bits a weight: b + (16 + b) / group + keep · (16 + 32). Each layer becomes a :class:`QuantizedLinear`.

    Args:
        model: stays as it is; the result is an edited copy.
        bits: b, 2 to 8.
        group: weights that share a step; must divide the inputs of each layer. None for a whole row.
        keep: share of the entries kept, in [0, 1), rounded up.
        protect: which ones: ``"gradient"``, ``"magnitude"`` of the weight, the ``"product"`` of both,
            ``"random"``, or layer to scores shaped like its weight.
        sequences: calibration data, an iterable of batches or a tensor [n, ...] that is cut into n of them.
            Gradients are squared a batch at a time. Only for ``"gradient"`` and ``"product"``.
        loss_fn: ``loss_fn(model, batch)`` is the mean loss, a scalar.
        layers: names; None for the linear layers in the model's repeated blocks, or all but the last.
        scope: the share is kept of each ``"layer"`` or of the whole ``"model"``.
        seed: of ``"random"``.

    Returns:
        The edited copy, and the report with the bytes that it really takes.

    Raises:
        ValueError: for a bad argument; a layer is unknown, no plain linear one, shared, tied, parametrized or
            on the meta device, has inputs that ``group`` does not divide, or weights beyond float16.
    """
    bits = int(check_choice("bits", bits, range(2, 9)))
    if group is not None:
        check_count("group", group)
    keep = check_unit_interval("keep", keep)
    check_choice("scope", scope, ("layer", "model"))
    given = dict(protect) if isinstance(protect, Mapping) else None
    kind = "given" if given is not None else check_choice("protect", protect, PROTECTIONS)
    slopes = kind in ("gradient", "product") and keep > 0
    if slopes and loss_fn is None:
        raise ValueError(f"loss_fn must be given for protect {kind!r}, got None")
    new, chosen = copied_with(model, list(given) if given and layers is None else layers)
    refuse_listed(new, chosen)
    for name, layer in chosen.items():
        weight = weight_of(layer)
        inputs = weight.shape[1]
        fits = group is None or inputs % group == 0
        refuse_unless(fits, name, layer, f"with inputs in groups of {group}, got {inputs}: try another group")
        refuse_unless(bool(weight.abs().max() <= LARGEST), name, layer, f"with weights within ±{LARGEST:g}")
    weights = {name: weight_of(layer) for name, layer in chosen.items()}
    if keep == 0:
        masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items()}
    else:
        gradients = {}
        if slopes and loss_fn is not None:
            gradients = gradient_sizes(new, chosen, checked_sequences(sequences), loss_fn, 2)
        source = torch.Generator().manual_seed(seed)
        scores = {name: _score(kind, name, w, gradients, given, source) for name, w in weights.items()}
        masks = _largest(scores, keep, scope)
    edits = {name: _quantize(new, name, layer, bits, group, masks[name]) for name, layer in chosen.items()}
    return new, report(model, edits)


def _score(
    kind: str,
    name: str,
    weight: Tensor,
    gradients: Mapping[str, Tensor],
    given: Mapping[str, Tensor] | None,
    source: torch.Generator,
) -> Tensor:
    if given is not None:
        return checked_scores("protect", name, weight, given)
    if kind == "random":
        return torch.rand(weight.shape, generator=source).to(weight.device)
    size = weight.detach().to(at_least_float(weight)).abs()
    if kind == "magnitude":
        return size
    return gradients[name] if kind == "gradient" else gradients[name] * size


def _largest(scores: dict[str, Tensor], share: float, scope: str) -> dict[str, Tensor]:
    """True for the ceil(share · n) largest scores of the scope."""

    def count(n: int) -> int:
        return math.ceil(n * share - 1e-9)

    if scope == "model":
        flat = torch.cat([score.flatten() for score in scores.values()])
        mask = _top(flat, count(len(flat)))
        parts = mask.split([score.numel() for score in scores.values()])
        return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}
    return {name: _top(s.flatten(), count(s.numel())).view_as(s) for name, s in scores.items()}


def _top(flat: Tensor, count: int) -> Tensor:
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[flat.argsort(descending=True, stable=True)[:count]] = True
    return mask


def _quantize(
    model: nn.Module, name: str, layer: nn.Module, bits: int, group: int | None, keep: Tensor
) -> LayerEdit:
    assert isinstance(layer, nn.Linear)
    made = QuantizedLinear(layer, bits, group or layer.in_features, keep)
    replace_module(model, name, made)
    what = f"{bits} bits in groups of {made.group}, {made.kept.numel()} entries kept"
    error = relative_error(layer.weight, made.weight)
    return LayerEdit(what, size_in_bytes(layer), size_in_bytes(made), error)
