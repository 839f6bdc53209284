"""Normalize-and-project (arXiv 2407.01800): the learning rate that acts is the one of the schedule."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from thalweg._core.checks import check_choice, check_count, check_positive, nearest
from thalweg.nn._watched_layers import watched_places
from thalweg.nn._weighted_layers import WEIGHTED, Place, places
from thalweg.nn.conversion import convert

__all__ = ["NormalizedLayer", "normalize_and_project", "project_after_step", "project_weights"]

GAINS = ("free", "frozen", "projected")


class NormalizedLayer(nn.Module):
    """A layer, the normalisation of what it puts out, and the length to which its weight returns.

    Attributes:
        layer, norm: the two modules; ``norm`` is an identity where the model has its own, or for a readout.
        radius: Frobenius norm of the weight when this was made, a buffer: it is restored with the weights.
        gain_radius: norm of gains and offsets together, if they are projected, too.
    """

    radius: Tensor
    gain_radius: Tensor | None

    def __init__(self, layer: nn.Module, norm: nn.Module):
        super().__init__()
        self.layer, self.norm = layer, norm
        self.gain_owners: tuple[nn.Module, ...] = ()  # in no module's list: the model may have its own
        self.register_buffer("radius", _length([self.layer.weight.detach()]))  # type: ignore[operator,list-item]
        self.register_buffer("gain_radius", None)

    def keep_gains(self, norm: nn.Module) -> None:
        """From now on project the parameters of ``norm``, too."""
        self.gain_owners = (norm,)
        gains = [p.detach() for p in norm.parameters()]
        self.gain_radius = _length(gains) if gains else None

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(self.layer(input))

    @torch.no_grad()
    def project(self) -> None:
        """Scale the weight, and gains if so chosen, back to their norms; what is zero stays."""
        _scale([self.layer.weight], self.radius)  # type: ignore[list-item]
        if self.gain_radius is not None:
            # Asked for anew: a state dict may have put others in their place.
            _scale([p for norm in self.gain_owners for p in norm.parameters()], self.gain_radius)


def _length(tensors: list[Tensor]) -> Tensor:
    """The norm of all together, in float32 at least."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    lengths = [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(lengths))


def _scale(tensors: list[Tensor], radius: Tensor) -> None:
    length = _length(tensors)
    scale = torch.where(length > 0, radius / length, 1.0)
    for tensor in tensors:
        tensor.copy_(tensor * scale)


def _normalisation(layer: nn.Module, norm: str, eps: float) -> nn.Module:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    size, like = weight.shape[0], {"device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        made = nn.LayerNorm if norm == "layer" else nn.RMSNorm
        return made(size, eps=eps, **like)  # type: ignore[arg-type]
    if norm == "rms":
        raise ValueError("norm must be 'layer' for a convolution, got 'rms'")
    return nn.GroupNorm(1, size, eps=eps, **like)  # type: ignore[arg-type]


def normalize_and_project(
    model: nn.Module,
    *,
    inputs: Any = None,
    norm: str = "layer",
    gains: str = "free",
    layers: Collection[str] | None = None,
    readout: bool = False,
    eps: float = 1e-5,
) -> nn.Module:
    r"""A copy of ``model``, normalised after each weighted layer but the last (arXiv 2407.01800).

    The layers lose their biases, so that the function does not depend on the length of a weight, only on its
    direction. With :func:`project_after_step` each weight then returns to its first Frobenius norm
    :math:`\rho` after every step, :math:`W \leftarrow \rho\, W / \lVert W \rVert_F`. Otherwise weights grow,
    and steps turn them less and less: by :math:`\eta / \lVert W \rVert^2` with SGD,
    :math:`\eta / \lVert W \rVert` with Adam. Weight decay on these weights does nothing and should be off. A
    learning rate that fell by this growth, and was good for it, now needs a schedule.

    Where a normalisation is all that reads a layer, none is added. The new model has layers under their old
    names, as :class:`NormalizedLayer`. Tensors that are projected are saved with their norms.

    Args:
        model: traced symbolically with ``torch.fx`` unless ``inputs`` or ``layers`` are given. Embeddings
            stay as they are, those of positions and class tokens with a batch dimension of one, too.
        inputs: one small example batch, a tensor, a tuple of positional or a mapping of keyword arguments: a
            copy of the model runs on it once, which needs no symbols, so that any forward will do.
        norm: ``"layer"``, for convolutions over channels and space together, or ``"rms"``.
        gains: what becomes of the normalisations' gains and offsets, on which the function does depend:
            ``"free"``, ``"frozen"`` (they no longer require a gradient) or ``"projected"`` (their norm, taken
            together, is kept).
        layers: names of the layers to normalise, each by a new normalisation; None for all that the trace
            or the run finds, except readouts: those without another such layer after them.
        readout: whether the readouts are projected, too, without a normalisation and with their bias. Their
            scale is then fixed, and the temperature of the logits with it.
        eps: of new normalisations; scale invariance is exact up to it.

    Raises:
        ValueError: an argument is out of range, the model cannot be traced or does not run on ``inputs``,
            there is nothing to normalise, the model was normalised before, or a module is not understood, has
            one unit, is zero or parametrized (it is named).
    """
    check_choice("norm", norm, ("layer", "rms"))
    check_choice("gains", gains, GAINS)
    check_positive("eps", eps)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if layers is not None:
        found = _named(model, layers)
    else:
        found = places(model) if inputs is None else watched_places(model, inputs)
    chosen = {name: place for name, place in found.items() if readout or not place.readout}
    if not any(not place.readout for place in chosen.values()):
        raise ValueError(f"model must have a linear or convolution layer before the last, got {list(found)}")

    for name, module in model.named_modules():
        if isinstance(module, NormalizedLayer):
            raise ValueError(f"model must not have been normalised before, got {name!r}: a NormalizedLayer")

    def wrapped(layer: nn.Module, place: Place) -> nn.Module:
        alone = isinstance(layer, nn.Linear) and layer.out_features == 1
        if alone and place.norm is None and not place.readout:
            raise ValueError("one unit alone would become constant: name all other layers in layers=")
        if is_parametrized(layer):
            raise ValueError("weight must be a plain parameter, got a parametrized one")
        if not bool(_length([layer.weight.detach()]) > 0):  # type: ignore[operator, list-item]
            raise ValueError("weight must have a direction, got zeros")
        if place.readout:
            return NormalizedLayer(layer, nn.Identity())
        layer.register_parameter("bias", None)
        return NormalizedLayer(layer, nn.Identity() if place.norm else _normalisation(layer, norm, eps))

    made = convert(model, {name: partial(wrapped, place=place) for name, place in chosen.items()})
    for name, place in chosen.items():
        layer = made.get_submodule(name)
        assert isinstance(layer, NormalizedLayer)
        scaled = made.get_submodule(place.norm) if place.norm else layer.norm
        if gains == "frozen":
            scaled.requires_grad_(False)
        elif gains == "projected":
            layer.keep_gains(scaled)
    return made


def _named(model: nn.Module, layers: Collection[str]) -> dict[str, Place]:
    modules = dict(model.named_modules())
    if isinstance(layers, str):
        raise ValueError(f"layers must be a collection of names, got the string {layers!r}")
    for name in layers:
        if not isinstance(modules.get(name), WEIGHTED):
            kinds = ", ".join(kind.__name__ for kind in WEIGHTED)
            named = f", a {type(modules[name]).__name__}" if name in modules else nearest(str(name), modules)
            raise ValueError(f"layers must name a {kinds}; got {name!r}{named}")
    return {name: Place(norm=None, readout=False) for name in layers}


def _layers(model: nn.Module) -> list[NormalizedLayer]:
    found = {id(m.layer.weight): m for m in model.modules() if isinstance(m, NormalizedLayer)}
    if not found:
        raise ValueError("model must come from normalize_and_project, got one without a NormalizedLayer")
    return list(found.values())


def project_weights(model: nn.Module) -> None:
    """Scale every weight that :func:`normalize_and_project` found back to its norm, once; in place.

    Raises:
        ValueError: the model has no :class:`NormalizedLayer`.
    """
    for layer in _layers(model):
        layer.project()


def project_after_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, every: int = 1
) -> RemovableHandle:
    """Project the weights of ``model`` after each step of ``optimizer``, whose moments stay as they are.

    Args:
        model: from :func:`normalize_and_project`; averaged copies of it are not touched.
        optimizer: must hold the weights, so make it from the new model.
        every: steps between two projections; in between only the effective learning rate drifts.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        ValueError: ``every`` is no positive integer, the model has nothing to project, or ``optimizer`` does
            not hold one of the weights.
    """
    check_count("every", every)
    layers = _layers(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, module in model.named_modules():
        if isinstance(module, NormalizedLayer) and id(module.layer.weight) not in held:
            raise ValueError(f"optimizer must hold the weights of the new model, got one without {name!r}")
    steps = itertools.count(1)

    def project(*_: Any) -> None:
        if next(steps) % every == 0:
            for layer in layers:
                layer.project()

    return optimizer.register_step_post_hook(project)
