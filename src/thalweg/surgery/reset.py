"""ReDo (arXiv 2302.12902): give dormant neurons fresh incoming weights and silent outgoing ones."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from thalweg._core.checks import check_not_negative
from thalweg.surgery._chain import Link, links
from thalweg.surgery._edit import checked

__all__ = ["ResetReport", "reset_dormant"]


@dataclass(frozen=True)
class ResetReport:
    """What a reset did.

    Attributes:
        units: layer, as named in the scores, to the indices of its units that were reset.
        total: how many units that is.
        states: names of the optimizer's state tensors in which entries were zeroed.
        left: layers that were left alone to why; empty if ``strict``.
    """

    units: dict[str, tuple[int, ...]]
    total: int
    states: tuple[str, ...]
    left: dict[str, str]


@dataclass(frozen=True)
class _Write:
    """``tensor[mask] = value[mask]``, as arithmetic that broadcasts."""

    tensor: Tensor
    mask: Tensor
    value: Tensor | float

    def apply(self) -> None:
        mask = self.mask.expand_as(self.tensor)
        value = torch.as_tensor(self.value, dtype=self.tensor.dtype, device=self.tensor.device)
        self.tensor.copy_(torch.where(mask, value, self.tensor))


def _masks(scores: Any, threshold: float) -> dict[str, Tensor]:
    scores = getattr(scores, "scores", scores)
    if not isinstance(scores, Mapping) or not scores:
        raise ValueError(
            "scores_or_report must be a non-empty mapping of layers to scores or have one as .scores, "
            f"got {type(scores).__name__}"
        )
    for name, score in scores.items():
        if not isinstance(score, Tensor) or score.dim() != 1 or bool(score.isnan().any()):
            raise ValueError(f"scores of {name!r} must be a vector (units,) without NaN, got {score!r}")
    return {name: score <= threshold for name, score in scores.items()}


def _shared_parameters(model: nn.Module) -> set[int]:
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {key for key, count in uses.items() if count > 1}


def _along(mask: Tensor, dim: int, tensor: Tensor) -> Tensor:
    shape = [1] * tensor.dim()
    shape[dim] = -1
    return mask.to(tensor.device).view(shape)


def _of_first(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first of the processes has them that train ``model`` together: replicas must stay alike."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return tensors
    group = model.process_group
    whole = [{name: tensor.cpu() for name, tensor in tensors.items()}]
    distributed.broadcast_object_list(whole, distributed.get_global_rank(group, 0), group=group)
    return whole[0]


def _checked(name: str, link: Link | ValueError, mask: Tensor, shared: set[int]) -> Link | ValueError:
    """The link, if its units can be reset."""
    if isinstance(link, ValueError):
        return link
    if mask.numel() != link.units:
        return ValueError(f"scores of {name!r} must have shape ({link.units},), got {tuple(mask.shape)}")
    for end, layer in ((link.producer_name, link.producer), (link.consumer_name, link.consumer)):
        if any(id(p) in shared for p in layer.parameters()):
            return ValueError(f"module {end!r} must not share its weight with another, got a tied one")
        if not layer.weight.requires_grad:
            return ValueError(f"module {end!r} must be trained to be given fresh units, got it frozen")
    return link


def _incoming(link: Link, mask: Tensor, fresh: Tensor) -> tuple[list[_Write], list[_Write]]:
    """Writes that renew the units themselves; those of the weight apart, since its moments follow."""
    weight, bias = link.producer.weight, link.producer.bias
    weights = [_Write(weight, _along(mask, 0, weight), fresh.to(weight))]
    rest = [] if bias is None else [_Write(bias, _along(mask, 0, bias), 0.0)]
    for norm in link.norms:
        # What the old unit taught the normalisation says nothing about the new one.
        for tensor, value in (
            (norm.weight, 1.0),
            (norm.bias, 0.0),
            (getattr(norm, "running_mean", None), 0.0),
            (getattr(norm, "running_var", None), 1.0),
        ):
            if isinstance(tensor, Tensor):
                rest.append(_Write(tensor, _along(mask, 0, tensor), value))
    return weights, rest


def _drawn(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else weight.device
    fresh = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=device)
    return nn.init.xavier_uniform_(fresh, generator=generator)


def _forget(
    optimizer: torch.optim.Optimizer, writes: list[_Write], moments: Collection[str] | None
) -> tuple[list[_Write], tuple[str, ...]]:
    forgotten, names = [], set()
    for write in writes:
        for name, value in optimizer.state.get(write.tensor, {}).items():
            chosen = moments is None or name in moments
            if chosen and isinstance(value, Tensor) and value.shape == write.tensor.shape:
                forgotten.append(_Write(value, write.mask.to(value.device), 0.0))
                names.add(name)
    return forgotten, tuple(sorted(names))


@torch.no_grad()
def reset_dormant(
    model: nn.Module,
    scores_or_report: Any,
    *,
    threshold: float = 0.1,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Collection[str] | None = None,
    generator: torch.Generator | None = None,
    strict: bool = True,
) -> ResetReport:
    r"""Recycle dormant units of a chain of linear and convolutional layers (ReDo, arXiv 2302.12902).

    Every unit with a score of at most ``threshold`` gets incoming weights drawn Xavier-uniform for its whole
    layer's shape and bias 0; then all weights that leave it become 0, so that the function changes only by
    what the dormant unit still contributed (and, with layer normalisation on the way, by its share there).
    Normalisation entries of the unit return to scale 1, shift 0, mean 0 and variance 1. Where a unit is
    dormant on both ends of a weight, the weight ends at 0.

    **The live model is changed in place**, between two optimizer steps: that is the method. All edits are
    computed and checked first; if anything is refused, nothing has changed.

    Understood between two ``Linear`` or ``Conv2d`` layers: activations, dropout, pooling, batch and layer
    normalisation, flattening, and modules that say by an attribute ``unitwise = True`` that they treat every
    unit alone. Parts of the model may be compiled; names of what is inside then have an ``_orig_mod``.
    Refused by name are a unit that is read twice (a skip connection), a layer that runs twice, a tied,
    grouped, parametrized or frozen weight.

    Args:
        model: traced symbolically with ``torch.fx``, behind DDP, DataParallel and torch.compile; not run.
            Under DDP every process calls this, and all take the scores and the draws of the first, so that
            their weights stay the same.
        scores_or_report: layer to scores of shape (units,), as in ``DormantNeurons.scores``, or that report.
            A layer is an activation module (``name[1]`` for its second run), or the ``Linear`` or ``Conv2d``
            whose units the scores are about.
        threshold: at least 0; scores have mean 1.
        optimizer: state tensors with the shape of a touched weight are zeroed where the weight was written,
            such as Adam's two moments. Steps, and the state of biases and normalisations, stay, as in the
            paper's code.
        moments: names of the state tensors to zero, where others hold copies of weights; None for all.
        generator: draws the weights; None for torch's global one.
        strict: refuse all if one layer has to be; else such layers are left alone, which the report says, and
            a warning if that is every one: a residual network keeps the units that its skips read.

    Raises:
        ValueError: scores are no vectors of the layers' sizes; the model has a weight on the meta device; and
            if ``strict``, it cannot be traced, or a layer is unknown, is the output or is connected in a way
            not understood.
    """
    masks = _masks(scores_or_report, check_not_negative("threshold", threshold))
    replicas, model = model, checked(model)
    masks = _of_first(replicas, masks)
    shared = _shared_parameters(model)
    found = {name: _checked(name, link, masks[name], shared) for name, link in links(model, masks).items()}
    left = {name: str(link) for name, link in found.items() if isinstance(link, ValueError)}
    if strict:
        for link in found.values():
            if isinstance(link, ValueError):
                raise link
    if len(left) == len(found):
        warnings.warn(f"thalweg: no unit could be reset: {next(iter(left.values()))}", stacklevel=3)
    chain = {name: link for name, link in found.items() if isinstance(link, Link)}
    masks = {name: masks[name] for name in chain}
    fresh = {
        name: _drawn(link.producer.weight, generator) for name, link in chain.items() if masks[name].any()
    }
    fresh = _of_first(replicas, fresh)
    incoming: list[_Write] = []
    outgoing: list[_Write] = []
    rest: list[_Write] = []
    for name, link in chain.items():
        if name not in fresh:
            continue
        mask = masks[name]
        weights, others = _incoming(link, mask, fresh[name])
        incoming += weights
        rest += others
        weight = link.consumer.weight
        # Channels first: each channel owns a run of height x width neighbouring inputs of a dense layer.
        columns = mask.repeat_interleave(link.columns_per_unit)
        outgoing.append(_Write(weight, _along(columns, 1, weight), 0.0))
    forgotten, states = _forget(optimizer, incoming + outgoing, moments) if optimizer else ([], ())
    # Outgoing last: a weight between two dormant units ends at zero.
    for write in incoming + rest + outgoing + forgotten:
        write.apply()
    units = {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in masks.items()}
    return ResetReport(units, sum(len(indices) for indices in units.values()), states, left)
