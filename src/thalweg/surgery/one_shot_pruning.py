"""One-shot pruning by weight size, by inputs (Wanda) and by gradients (GBLM, arXiv 2311.04902)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_not_negative, check_unit_interval
from thalweg.surgery._calibration import (
    LossFn,
    at_least_float,
    checked_sequences,
    gradient_sizes,
    input_norms,
    stages,
)
from thalweg.surgery._edit import (
    EditReport,
    LayerEdit,
    copied_with,
    refuse_unless,
    relative_error,
    report,
    size_in_bytes,
    weight_of,
)
from thalweg.surgery._masks import check_pattern, checked_scores, keep_highest

__all__ = ["prune"]

SCORES = ("magnitude", "wanda", "gradient", "gblm")
SCOPES = ("row", "layer", "model")
POWERS = {"l1": 1, "l2": 2}


@torch.no_grad()
def prune(
    model: nn.Module,
    sparsity: float = 0.5,
    *,
    score: str | Mapping[str, Tensor] = "magnitude",
    sequences: Any = None,
    loss_fn: LossFn | None = None,
    layers: Iterable[str] | None = None,
    scope: str | None = None,
    pattern: tuple[int, int] | None = None,
    alpha: float = 100.0,
    aggregate: str = "l1",
) -> tuple[nn.Module, EditReport]:
    r"""Zero the weights with the lowest scores; no retraining, no other weight moves.

    .. math:: S_{ij} = |W_{ij}| (A_j + \alpha G_{ij}), \quad
        A_j = \Big(\frac1N \sum_{n,t} x_{ntj}^2\Big)^{1/2}, \quad
        G = \sum_n |g_n| \text{ or } \Big(\sum_n g_n^2\Big)^{1/2}

    ``"gblm"`` is this score (arXiv 2311.04902), ``"wanda"`` has :math:`\alpha = 0` (arXiv 2306.11695),
    ``"gradient"`` :math:`A = 0`, ``"magnitude"`` is :math:`|W|`. :math:`g_n` is the gradient of the loss of
    sequence n alone, at the dense weights; the inputs :math:`x` are those in the model whose earlier blocks
    are already pruned, so that a block costs one more pass over the sequences. All in evaluation mode.

    Args:
        model: stays as it is; the result is an edited copy, dense in memory.
        sparsity: share of zeros, in [0, 1): ``int(sparsity · n)`` of n weights of the scope, earlier ones
            first among equals.
        score: one of the above, or layer to scores shaped like its weight.
        sequences: calibration data, an iterable of batches or a tensor [n, ...] that is cut into n of them.
            Every batch counts as one sequence: gradients of larger ones cancel before they are summed.
        loss_fn: ``loss_fn(model, batch)`` is the mean loss, a scalar. For ``"wanda"`` not needed if
            ``model(batch)`` runs; tuples are spread over positions, mappings over keywords.
        layers: names; None for the linear layers in the model's repeated blocks, or all but the last.
            ``"magnitude"`` and given scores take convolutions too, but for transposed ones.
        scope: what competes: weights of one output ``"row"``, of a ``"layer"`` or of the whole ``"model"``.
            None is the papers' choice: the layer for ``"magnitude"``, the row for the others.
        pattern: (n, m) keeps the n highest of every m consecutive inputs, in place of sparsity and scope.
        alpha: weight of the gradient term, at least 0. It has a unit: 100 suits 128 sequences of 2048 tokens;
            A grows with the root of the number of tokens, G with that of sequences.
        aggregate: ``"l1"`` or ``"l2"``, how gradients of the sequences are put together.

    Returns:
        The pruned copy, and the report. Its bytes are those of the kept values and one bit a weight, or dense
        if that is less.

    Raises:
        ValueError: for a bad argument; a layer is unknown, shared, tied, parametrized or on the meta device,
            does not run on the sequences, or its inputs cannot be divided into groups of m.
    """
    given = isinstance(score, Mapping)
    kind = "given" if isinstance(score, Mapping) else check_choice("score", score, SCORES)
    sparsity = check_unit_interval("sparsity", sparsity)
    alpha = check_not_negative("alpha", alpha)
    check_choice("aggregate", aggregate, POWERS)
    scope = check_choice("scope", scope or ("layer" if kind == "magnitude" else "row"), SCOPES)
    if pattern is not None:
        check_pattern(pattern)
    if kind in ("gradient", "gblm") and loss_fn is None:
        raise ValueError(f"loss_fn must be given for score {kind!r}, got None")
    if isinstance(score, Mapping):
        layers = list(score) if layers is None else layers
    convolved = (nn.Conv1d, nn.Conv2d, nn.Conv3d) if given or kind == "magnitude" else ()
    new, chosen = copied_with(model, layers, (nn.Linear, *convolved))
    for name, layer in chosen.items():
        inputs = weight_of(layer)[0].numel()
        if pattern is not None:
            allowed = f"with inputs in groups of {pattern[1]} for pattern, got {inputs}"
            refuse_unless(inputs % pattern[1] == 0, name, layer, allowed)
    dense = {name: weight_of(layer).detach().clone() for name, layer in chosen.items()}
    if isinstance(score, Mapping):
        parts = iter([{name: checked_scores("score", name, dense[name], score) for name in chosen}])
    elif kind == "magnitude":
        parts = iter([{name: size_of(weight) for name, weight in dense.items()}])
    else:
        batches = checked_sequences(sequences)
        together = scope == "model" and pattern is None
        parts = _scores(kind, new, chosen, batches, loss_fn, alpha, POWERS[aggregate], together)
    for scores in parts:
        for name, keep in keep_highest(scores, sparsity, scope, pattern).items():
            weight_of(chosen[name]).masked_fill_(~keep, 0)
    return new, report(model, {name: _edit(layer, dense[name]) for name, layer in chosen.items()})


def _scores(
    kind: str,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: list[Any],
    loss_fn: LossFn | None,
    alpha: float,
    power: int,
    together: bool,
) -> Iterator[dict[str, Tensor]]:
    """Scores of one stage after the other; the next is asked for when the last has been pruned."""
    slopes = {}
    if loss_fn is not None and kind != "wanda":
        slopes = gradient_sizes(model, layers, batches, loss_fn, power)
    if kind == "gradient":
        yield {name: size_of(weight_of(layer)) * slopes[name] for name, layer in layers.items()}
        return
    order = stages(model, layers, batches[0], loss_fn)
    if together:
        order = [[name for stage in order for name in stage]]
    for stage in order:
        norms = input_norms(model, {name: layers[name] for name in stage}, batches, loss_fn)
        if kind == "gblm":
            norms = {name: norms[name] + alpha * slopes[name] for name in stage}
        yield {name: size_of(weight_of(layers[name])) * norms[name] for name in stage}


def size_of(weight: Tensor) -> Tensor:
    return weight.detach().to(at_least_float(weight)).abs()


def _edit(layer: nn.Module, dense: Tensor) -> LayerEdit:
    weight = weight_of(layer)
    kept = int(weight.count_nonzero())
    whole = size_in_bytes(layer)
    stored = kept * weight.element_size() + -(-weight.numel() // 8)
    saved = max(0, weight.numel() * weight.element_size() - stored)
    what = f"{1 - kept / weight.numel():.1%} of {weight.numel()} weights zero"
    return LayerEdit(what, whole, whole - saved, relative_error(dense, weight))
