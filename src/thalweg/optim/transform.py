"""A transform: a pure update for one tensor, the state it keeps, and the numbers that steer it.

A step is a chain of transforms. Each takes the update ``u`` so far (first the gradient), the parameter
``p``, its own state and ``k``, and returns the next update and state. The idea of a chain of small pure
parts is optax's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor

from thalweg._core.discover import modules

__all__ = ["Transform", "element", "ema", "matrix", "model", "part", "plus", "rows", "tensor", "whole"]

Scope = Literal["element", "rows", "tensor", "model", "whole", "matrix"]
P = ParamSpec("P")


class State:
    """The tensors that a transform keeps for one parameter: ``state.mean``, ``state.replace(mean=...)``.

    Attributes:
        slots: by name.
        owned: whether nobody needs their old values: an average may then be formed in their memory.
    """

    def __init__(self, slots: Mapping[str, Tensor], owned: bool = False):
        self.slots = dict(slots)
        self.owned = owned

    def __getattr__(self, name: str) -> Tensor:
        return self.slots[name]

    def replace(self, **slots: Tensor) -> State:
        return State({**self.slots, **slots}, self.owned)

    def averaged(self, decay: Any, **new: Tensor) -> State:
        """With :func:`ema` of each named slot and what is new, after which its old value may be gone."""
        moved = {name: ema(self.slots[name], one, decay, self.owned) for name, one in new.items()}
        return self.replace(**moved)


class Scalars:
    """The ``k`` of a transform: ``k.lr``, ``k.step`` and its hyper-parameters, by name."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def __getattr__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Transform:
    """One link of a chain; made by a part such as :func:`thalweg.optim.adam`, seldom by hand.

    Attributes:
        scope: ``element`` (shape-free); sums over each row (``rows``: of output features, channels), over
            its ``tensor`` or over all tensors of the ``model``; the ``whole`` tensor in its shape, or that
            and 2-D (``matrix``). Only the first four are compiled and may be sharded.
        update: ``(u, p, state, k) -> (u, state)``; pure, tensors in at least float32. ``k`` holds ``lr``,
            ``step``, the hyper-parameters, what ``scalars`` returned and, if it measures, ``sums``, each a
            0-d float64 tensor, so that a changing learning rate never recompiles. With scope ``whole`` or
            ``matrix``, ``k`` holds plain floats, ``index`` and ``count`` of the parameter among its like, and
            ``owned``: whether ``update`` may write to ``u``. It may always change its state in place.
        slots: names of the state tensors, shaped like the parameter and zero at first unless ``fresh``.
        fresh: for slots of another shape, dtype or start: ``(p, k)`` to the first value.
        hyper: hyper-parameters, which a parameter group may override and a schedule may change.
        follows: hyper-parameters that are an earlier link's, if one before it has them by the same name.
        scalars: ``k`` as plain floats to further scalars, once a step rather than once an element.
        measure: ``(u, p, state, k)`` to a tuple of sums, added up over the scope and over shards: 0-d, or
            for ``rows`` of shape (rows, 1), where ``p`` is (rows, everything else).
        totals: for ``rows``: its sums and ``k`` as plain floats to a tuple of 0-d sums over the whole tensor,
            which follow the others in ``k.sums``, repeated for each row.
        gate: for ``rows`` with totals: ``k`` with its sums, measured on the raw gradient, to whether the link
            applies in this step; where it does not, ``otherwise`` stands in. Asked of whole tensors only.
        gradient: whether ``k.gradient`` is to hold the parameter's own gradient, as the chain got it.
        applies: ``(p, k)`` to whether a parameter goes through it; for all by default.
        otherwise: what parameters to which it does not apply go through instead; nothing by default.
        shards: whether it works on a part of a tensor; element transforms and sums over a tensor do.
        restart: ``k`` as plain floats to whether the chain's state is zeroed before this step.
        borrows: slots that are read from the next transform that keeps one of the same name, if any does.
        precondition: ``(state, k)`` to the diagonal by which the gradient is multiplied, to a
            :class:`thalweg._core.factored.Factored` if that is a matrix, or to None where it is neither;
            ``k.parameter`` is the parameter.
        stability: ``k`` as plain floats to the largest stable product of learning rate and sharpness.
        degree: how the length of an update answers to that of the gradients: 1 if it is as long as they are,
            bounds aside; 0 if it does not depend on it, as with signs and Adam; None if neither. In a chain
            degrees multiply.
        name, arguments: the part that made it and with what, for specs and error messages.
    """

    scope: Scope
    update: Callable[..., tuple[Tensor, State]]
    slots: tuple[str, ...] = ()
    hyper: Mapping[str, Any] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    scalars: Callable[[Scalars], Mapping[str, float]] | None = None
    measure: Callable[..., tuple[Tensor, ...]] | None = None
    totals: Callable[..., tuple[Tensor, ...]] | None = None
    gate: Callable[[Scalars], Tensor] | None = None
    gradient: bool = False
    fresh: Mapping[str, Callable[[Tensor, Scalars], Tensor]] = field(default_factory=dict)
    applies: Callable[[Tensor, Scalars], bool] | None = None
    otherwise: Transform | None = None
    shards: bool = True
    restart: Callable[[Scalars], bool] | None = None
    borrows: tuple[str, ...] = ()
    precondition: Callable[[State, Scalars], Any] | None = None
    stability: Callable[[Scalars], float] | None = None
    degree: int | None = None
    name: str = "custom"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        """Copies and pickles hold the part's name and arguments: its functions are local and don't pickle."""
        if self.name in PARTS:
            return remade, (self.name, dict(self.arguments))
        return super().__reduce__()

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments.items())})"


_OPTIONS = {field.name for field in fields(Transform)} - {"scope", "update", "hyper", "name", "arguments"}


def _transform(scope: Scope, update: Callable, arguments: dict[str, Any]) -> Transform:
    options = {key: arguments.pop(key) for key in _OPTIONS & arguments.keys()}
    return Transform(scope, update, hyper=arguments, **options)


def element(update: Callable, **arguments: Any) -> Transform:
    """A shape-free transform; keyword arguments are :class:`Transform`'s own or else hyper-parameters."""
    return _transform("element", update, arguments)


def tensor(update: Callable, *, measure: Callable, **arguments: Any) -> Transform:
    """A transform that needs sums over its whole tensor: ``measure`` names them, ``k.sums`` holds them."""
    return _transform("tensor", update, {"measure": measure, **arguments})


def rows(update: Callable, *, measure: Callable, **arguments: Any) -> Transform:
    """A transform that needs sums over each row of ``p`` as (rows, everything else); a vector is one row."""
    return _transform("rows", update, {"measure": measure, **arguments})


def model(update: Callable, *, measure: Callable, **arguments: Any) -> Transform:
    """A transform that needs sums over all tensors: ``measure`` names them, ``k.sums`` holds them."""
    return _transform("model", update, {"measure": measure, **arguments})


def whole(update: Callable, **arguments: Any) -> Transform:
    """A transform of a whole tensor in its own shape: runs eagerly, with state of any shape, unsharded."""
    return _transform("whole", update, {"shards": False, **arguments})


def matrix(update: Callable, **arguments: Any) -> Transform:
    """A transform of a whole matrix; refuses anything that is not 2-D unless ``applies`` sorts it out."""
    return _transform("matrix", update, {"shards": False, **arguments})


PARTS: dict[str, Callable[..., Transform]] = {}


def part(make: Callable[P, Transform]) -> Callable[P, Transform]:
    """Let the transforms that ``make`` returns know their name and arguments, for specs to rebuild them."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def named(*args: P.args, **kwargs: P.kwargs) -> Transform:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return replace(make(*args, **kwargs), name=make.__name__, arguments=dict(bound.arguments))

    PARTS[make.__name__] = named
    return named


def remade(name: str, arguments: Mapping[str, Any]) -> Transform:
    """The transform that the part ``name`` makes of ``arguments``."""
    modules("thalweg.optim")
    return PARTS[name](**arguments)


def at_hand(scalar: Any) -> float | None:
    """A scalar as a float where that costs nothing: in eager code, off devices that have to be asked."""
    if isinstance(scalar, float):
        return scalar
    return None if torch.compiler.is_compiling() or scalar.device.type != "cpu" else scalar.item()


def plus(u: Tensor, p: Tensor, factor: Any) -> Tensor:
    """``u`` and ``factor`` times ``p``."""
    if (number := at_hand(factor)) is not None:
        return torch.add(u, p, alpha=number)  # the same in one operation
    return u + factor * p


def ema(old: Tensor, new: Tensor, decay: Any, in_place: bool = False) -> Tensor:
    """Exponential moving average: ``decay`` of ``old`` and the rest of ``new``; it may end up in ``old``."""
    if (number := at_hand(decay)) is not None:
        return old.lerp_(new, 1 - number) if in_place else torch.lerp(old, new, 1 - number)
    return old + (new - old) * (1 - decay)
