"""The tensors of a model that a penalty on its layers is about: matrices, biases, gains; fused ones apart."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg._core.checks import nearest
from thalweg.nn._weighted_layers import one_for_all
from thalweg.nn.batch_channel import BatchChannelNorm
from thalweg.nn.recurrent import LayerNormGRU

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Piece:
    """A part of a parameter.

    Attributes:
        name: of the parameter, with ``[i]`` for the i-th of several matrices that are stored as one.
        kind: ``matrix``, (out, ...); ``bias`` or ``gain``, vectors.
        module, attribute: whose it is.
        parts, index: how many matrices are stored as one, and which of them it is.
    """

    name: str
    kind: str
    module: nn.Module
    attribute: str
    parts: int
    index: int

    def read(self) -> Tensor:
        """The tensor now, with its gradient."""
        # Asked for anew each time: a parametrized weight is computed, a moved one replaced.
        part: Tensor = getattr(self.module, self.attribute).chunk(self.parts)[self.index]
        return part


def _roles(module: nn.Module) -> dict[str, tuple[str, int]] | None:
    """Names of a module's own parameters with kind and number of matrices; None if it is not understood."""
    if isinstance(module, LAYERS):
        return {"weight": ("matrix", 1), "bias": ("bias", 1)}
    if isinstance(module, BatchChannelNorm):
        gains = dict.fromkeys(("weight", "group_weight"), ("gain", 1))
        return {**gains, "bias": ("bias", 1), "group_bias": ("bias", 1)}
    if isinstance(module, LayerNormGRU):
        return {"input_weight": ("matrix", 3), "hidden_weight": ("matrix", 3)}
    if isinstance(module, NORMS):
        return {"weight": ("gain", 1), "bias": ("bias", 1)}
    if isinstance(module, nn.MultiheadAttention):
        single = {f"{letter}_proj_weight": ("matrix", 1) for letter in "qkv"}
        return {"in_proj_weight": ("matrix", 3), "in_proj_bias": ("bias", 3), **single}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        names = [name for name, _ in module.named_parameters(recurse=False)]
        kinds = {name: "bias" if name.startswith("bias") else "matrix" for name in names}
        # The projection of an LSTM's output has no gates.
        return {name: (kind, 1 if "_hr_" in name else gates) for name, kind in kinds.items()}
    return {} if all(one_for_all(p) for p in module.parameters(recurse=False)) else None


def pieces(model: nn.Module, skip: Collection[str] = ()) -> list[Piece]:
    """Every matrix, bias and gain of ``model``; a shared one once, under its first name.

    Understood are linear and convolution layers, normalisations, ``MultiheadAttention`` and recurrent layers;
    their weights may be parametrized. Embeddings are left out, and so are class tokens and embeddings of
    positions that a module holds with a batch dimension of one.

    Raises:
        ValueError: another module has parameters of its own and is not skipped, one is on the meta device, or
            a name in ``skip`` fits nothing; ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(skip, str):
        raise ValueError(f"skip must be a collection of names, got the string {skip!r}")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"skip must name modules of the model, got {pattern!r}{nearest(pattern, names)}")
    found: list[Piece] = []
    seen: set[int] = set()
    for where, module in model.named_modules():
        if any(fnmatchcase(where, pattern) for pattern in skip) or isinstance(module, nn.Embedding):
            continue
        if ".parametrizations." in f".{where}.":
            continue  # the layer that it belongs to is asked for the weight itself
        roles = _roles(module)
        if roles is None:
            kind = type(module).__name__
            raise ValueError(f"module {where!r} ({kind}) has parameters that are not understood: skip it")
        for name, (kind, parts) in roles.items():
            tensor = getattr(module, name, None)
            # A parametrized weight is another tensor each time.
            own = id(tensor) if name in module._parameters else None
            if tensor is None or own in seen:
                continue
            seen |= set() if own is None else {own}
            if tensor.is_meta:
                raise ValueError(f"module {where!r} must hold numbers, got one on the meta device")
            for index in range(parts):
                full = f"{where}.{name}".removeprefix(".") + (f"[{index}]" if parts > 1 else "")
                found.append(Piece(full, kind, module, name, parts, index))
    return found
