"""Git Re-Basin (arXiv 2209.04836): bring one model's hidden units into the order of another's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_count, check_positive
from thalweg._core.precision import without_autocast
from thalweg.surgery._activations import activation_pieces, check_batches
from thalweg.surgery._axis_run import movable, trace
from thalweg.surgery._calibration import LossFn, at_least_float
from thalweg.surgery._edit import bare
from thalweg.surgery._kept_function import matched
from thalweg.surgery._matching import Matching
from thalweg.surgery._same_shape import pair
from thalweg.surgery._straight_through import Descent, StraightThrough
from thalweg.surgery._symmetry import symmetry

__all__ = ["AlignReport", "align"]

METHODS = ("activations", "correlations", "straight_through", "weights")


@dataclass(frozen=True)
class AlignReport:
    """What :func:`align` did; ``print`` shows it.

    Attributes:
        permutations: group of units to their new order: unit i of the new model is unit ``order[i]`` of the
            old one; [n], or [heads, n] for units that are ordered inside each new head. A group is called
            after the first module that carries it.
        carried: group to the weights along which it runs, as ``"name[axis]"``.
        fixed: such weight axes that keep their order to the reason.
        distance: Euclidean distance of all weights to the reference, before and after.
        layers: the same for each weight.
        sweeps: passes over all groups, in all steps; ``settled`` unless the last still moved something.
        error: largest change of the model's answer to ``inputs``, relative to its largest entry.
    """

    permutations: dict[str, Tensor]
    carried: dict[str, tuple[str, ...]]
    fixed: dict[str, str]
    distance: tuple[float, float]
    layers: dict[str, tuple[float, float]]
    sweeps: int
    settled: bool
    error: float

    def __str__(self) -> str:
        before, after = self.distance
        lines = [
            f"{len(self.permutations)} groups of units, distance to the reference {before:.4g} -> {after:.4g}"
        ]
        for name, order in self.permutations.items():
            moved = int((order != torch.arange(order.shape[-1])).sum())
            lines.append(
                f"  {name}: {moved} of {order.numel()} units moved, in {len(self.carried[name])} weights"
            )
        lines += [f"  {name} kept its order: {why}" for name, why in self.fixed.items()]
        return "\n".join(lines)


@without_autocast()
def align(
    model: nn.Module,
    reference: nn.Module,
    inputs: Any,
    *,
    method: str = "weights",
    batches: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    steps: int = 200,
    lr: float = 0.3,
    sweeps: int = 100,
    restarts: int = 1,
    seed: int = 0,
) -> tuple[nn.Module, AlignReport]:
    r"""A copy of ``model`` with its hidden units in the order of ``reference``'s (arXiv 2209.04836).

    Which units can be permuted, and where weights carry them, is found by running the model once and
    following its operations: no table of layers is needed. The copy computes the same function (checked on
    ``inputs``); afterwards its weights can be averaged with those of ``reference``: see :func:`interpolate`.

    Weight matching maximises :math:`\langle A, \pi(B)\rangle` over all weights, one group of units at a time.
    It ends where no group alone can be improved, which depends on the order of the groups: ``restarts`` tries
    several. Heads of attention move as wholes, and what is inside them is matched for each pair of heads.
    Activation matching does the same with what units put out on ``batches``, where a weight reads it, in the
    place of weights: by their products, or by their correlations, which leave units that never vary alone.
    Straight-through matching matches to weights that begin as the reference's and descend on the loss halfway
    between the two models; it takes the order whose loss there was lowest.

    Understood: linear, convolutional (strided, transposed, grouped) and recurrent layers, embeddings, all
    normalisations, attention, gates, residual, dense and padded shortcuts, reshaping, tied weights and
    modules that run several times. Whatever else an operation touches keeps its order and is reported as
    ``fixed`` with the operation and the module. So do constants, weights behind a parametrization, what
    ``inputs`` do not reach (another branch, later positions), and units that an unreached weight may carry.
    All that the model answers with keeps its order: of a model of transformers also the keys and values of
    its cache, unless ``inputs`` hold ``use_cache=False``.

    Args:
        model: to be permuted; untouched itself.
        reference: has the same weights by name and shape; read in the floating-point types of ``model``.
        inputs: one small example batch: a tensor, a tuple (or list of tensors) of positional or a mapping of
            keyword arguments.
        method: ``"weights"``, ``"activations"``, ``"correlations"`` or ``"straight_through"``.
        batches: data for all but the first. Those of activations are like ``inputs``, and by default those
            alone; for straight-through matching they are what ``loss_fn`` takes, and as large as fits.
        loss_fn: ``loss_fn(model, batch)``, for straight-through matching.
        steps, lr: of its descent, with a momentum of 0.9; a step reads one batch and matches once.
        sweeps: passes over all groups at most.
        restarts: random orders of the groups, of which the best result counts.
        seed: decides those orders.

    Raises:
        ValueError: the two do not fit, a weight is on the meta device, not finite or shares memory with
            another, the model does not run on ``inputs``, answers differently each time or has no units that
            could be permuted (the operation in the way is named); ``loss_fn`` is missing or gives no finite
            loss.
    """
    check_choice("method", method, METHODS)
    check_count("steps", steps)
    check_positive("lr", lr)
    if callable(loss_fn) is not (method == "straight_through"):
        raise ValueError(f"loss_fn must be a function for straight_through and else None, got {loss_fn!r}")
    check_count("sweeps", sweeps)
    check_count("restarts", restarts)
    check_count("seed", seed, low=0)
    new, other = pair(model, reference)
    seen, answer = trace(new, inputs)
    group = symmetry(seen, sights=method != "weights")
    if not group.units:
        where, why = next(iter(group.fixed.items()), ("its weights", "it has none"))
        raise ValueError(
            f"model must have hidden units that can be permuted, got {type(new).__name__} without: "
            f"{where} keeps its order because of {why}"
        )
    ours, theirs = movable(other), movable(new)
    before = _distances(ours, theirs)
    old = {name: tensor.detach() for name, tensor in movable(bare(model)).items()}
    weights = dict(new.named_parameters())
    pieces = [piece for piece in group.pieces if piece.name in weights]
    if method == "weights":
        matching = Matching(group, pieces, ours, old)
    elif loss_fn is not None:
        descent = Descent(loss_fn, list(check_batches(batches)), steps, lr)
        if not descent.batches:
            raise ValueError("batches must hold at least one batch, got none")
        matching = StraightThrough(group, pieces, other, old, descent)
    else:
        data = check_batches([inputs] if batches is None else batches)
        matching = Matching(
            group, *activation_pieces(group, new, other, data, centred=method == "correlations")
        )
    found, error, held = matched(new, inputs, answer, matching, old, (sweeps, restarts, seed))
    after = _distances(ours, theirs)
    carried = {
        one.name: tuple(
            dict.fromkeys(
                f"{piece.name}[{axis}]"
                for piece in group.pieces
                for axis, other in zip(piece.axes, piece.labels, strict=True)
                if other == label
            )
        )
        for label, one in enumerate(group.units)
    }
    orders = {one.name: found.perms[label] for label, one in enumerate(group.units)}
    fixed = dict(group.fixed)
    for label in held:
        # Numbers left torch on the way, for instance; the trace could not know.
        name = group.units[label].name
        fixed |= dict.fromkeys(carried.pop(name), "another order that changes the model's answers")
        del orders[name]
    return new, AlignReport(
        permutations=orders,
        carried=carried,
        fixed=fixed,
        distance=(_length(before), _length(after)),
        layers={name: (before[name], after[name]) for name in before},
        sweeps=found.sweeps,
        settled=found.settled,
        error=error,
    )


@torch.no_grad()
def _distances(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: _size(p.to(at_least_float(p)) - ours[name].to(p.device))
        for name, p in theirs.items()
        if isinstance(p, nn.Parameter)
    }


def _size(difference: Tensor) -> float:
    # Row by row first: sums stay short, and the whole need not be made float64.
    rows = torch.linalg.vector_norm(difference.flatten(1), dim=1) if difference.dim() > 1 else difference
    return torch.linalg.vector_norm(rows, dtype=torch.float64).item()


def _length(parts: Mapping[str, float]) -> float:
    return math.sqrt(sum(part**2 for part in parts.values()))
