"""A recipe is data: name any optimizer exactly in JSON, and build it again from that."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, overload

import torch
from torch import nn
from torch.optim import Optimizer

from thalweg._core.checks import check_choice, nearest
from thalweg._core.discover import modules
from thalweg.optim._wrapper import Wrapper
from thalweg.optim._wrapper_specs import described, kind_of, wrapped
from thalweg.optim.descent import Descent
from thalweg.optim.transform import PARTS, Transform

__all__ = ["Spec", "build", "spec"]


class _Required(TypedDict):
    lr: float
    chain: list[dict[str, Any]]


class Spec(_Required, total=False):
    """JSON-serialisable description of a :class:`thalweg.optim.Descent`.

    ``chain`` holds one object a transform: ``part`` and its arguments, which may be transforms. ``groups``
    holds what each parameter group overrides, in order.
    """

    rounding: str
    nonfinite: str
    state_dtype: str | None
    groups: list[dict[str, Any]]


@overload
def spec(optimizer: Descent) -> Spec: ...
@overload
def spec(optimizer: Optimizer) -> Mapping[str, Any]: ...
def spec(optimizer: Optimizer) -> Mapping[str, Any]:
    """Describe ``optimizer`` so that :func:`build` makes an equal one.

    A wrapper is described by its name under ``wrapper``, its arguments and the spec of its ``inner``
    optimizer; of the model that it was given only that there is one.

    Raises:
        ValueError: if it is no ``Descent`` nor around one, or a transform in it was not made by a part.
    """
    if isinstance(optimizer, Wrapper):
        inner = optimizer.inner
        if not isinstance(inner, (Descent, Wrapper)):
            raise ValueError(
                f"inner of {type(optimizer).__name__} must be a thalweg.optim.Descent or a wrapper around "
                f"one to have a spec, got {type(inner).__module__}.{type(inner).__name__}"
            )
        about = described(optimizer)
        return {**{key: _plain(value) for key, value in about.items()}, "inner": spec(inner)}
    if not isinstance(optimizer, Descent):
        raise ValueError(
            f"optimizer must be a thalweg.optim.Descent, got {type(optimizer).__name__}: a wrapper around a "
            "Descent will do too"
        )
    defaults = {
        key: value for key, value in optimizer.defaults.items() if key == "lr" or key in _hyper(optimizer)
    }
    groups = [
        {key: _plain(group[key]) for key in defaults if _plain(group[key]) != _plain(defaults[key])}
        for group in optimizer.param_groups
    ]
    dtype = optimizer.state_dtype
    return {
        "lr": float(defaults["lr"]),
        "chain": [_plain(transform) for transform in optimizer.chain],
        "rounding": optimizer.rounding,
        "nonfinite": optimizer.nonfinite,
        "state_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "groups": groups,
    }


def build(
    spec: Spec | Mapping[str, Any] | str,
    params: Iterable[Any],
    *,
    model: nn.Module | None = None,
    compile: bool | None = None,
) -> Descent | Wrapper:
    """Make the optimizer that ``spec`` (an object or its JSON text) describes, for ``params``.

    Args:
        params: parameters, or as many groups as the spec describes.
        model: what a wrapper whose spec says ``"model": true`` was given.

    Raises:
        ValueError: for an unknown part, wrapper or argument (named, with near suggestions), a missing field,
            or a number of groups that differs from the spec's.
    """
    entry: Any = json.loads(spec) if isinstance(spec, str) else spec
    if "wrapper" not in entry:
        return _descent(entry, params, compile)
    kind = kind_of(entry)
    inner = build(entry["inner"], params, model=model, compile=compile)
    arguments = {key: value for key, value in entry.items() if key not in ("wrapper", "inner")}
    return wrapped(kind, inner, _tuples(arguments), model)


def _descent(entry: Mapping[str, Any], params: Iterable[Any], compile: bool | None) -> Descent:
    known = Spec.__annotations__.keys()
    for key in entry:
        if key not in known:
            raise ValueError(f"unknown field {key!r} in a spec{nearest(key, known)}")
    for key in Spec.__required_keys__ - entry.keys():
        raise ValueError(f"a spec must hold {key!r}, got {sorted(entry)}")
    chain = [transform(one) for one in entry["chain"]]
    overrides = entry.get("groups") or [{}]
    given = list(params)
    groups = [dict(g) for g in given] if given and isinstance(given[0], Mapping) else [{"params": given}]
    if len(groups) != len(overrides):
        raise ValueError(
            f"params must come in {len(overrides)} groups as the spec describes, got {len(groups)}"
        )
    merged = [{**_tuples(own), **group} for group, own in zip(groups, overrides, strict=True)]
    return Descent(
        merged,
        *chain,
        lr=entry["lr"],
        rounding=entry.get("rounding", "none"),
        nonfinite=entry.get("nonfinite", "step"),
        state_dtype=_dtype(entry.get("state_dtype")),
        compile=compile,
    )


def transform(entry: Mapping[str, Any]) -> Transform:
    """Make the transform that one entry of a spec's chain describes."""
    modules("thalweg.optim")
    arguments = dict(entry)
    make = PARTS[check_choice("part", arguments.pop("part", None), PARTS)]
    allowed = inspect.signature(make).parameters
    for key in arguments:
        if key not in allowed:
            raise ValueError(f"unknown argument {key!r} of {make.__name__}{nearest(key, allowed)}")
    return make(**_tuples(arguments))


def _hyper(optimizer: Descent) -> set[str]:
    return {key for one in optimizer.links for key in one.hyper.values()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, Transform):
        if value.name not in PARTS:
            raise ValueError(
                f"chain holds a transform that no part made: decorate its maker with @part ({value!r})"
            )
        return {"part": value.name, **{key: _plain(one) for key, one in value.arguments.items()}}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(v)
        if isinstance(v, Sequence) and not isinstance(v, str)
        else transform(v)
        if isinstance(v, Mapping)
        else v
        for key, v in arguments.items()
    }


def _dtype(name: str | None) -> torch.dtype | None:
    return (
        None
        if name is None
        else getattr(torch, check_choice("state_dtype", name, ("bfloat16", "float16", "float32", "float64")))
    )
