"""One loop over memory for a link that gets its tensor whole: its element-wise work, eager or compiled.

The work is a function of ``k`` and tensors that it changes in place, written once. Compiled, it goes through
``_kernel.Compiled``, so that it is shared by all optimizers of the same structure and serves any length; the
numbers in ``k`` come in as a tensor, so that no schedule recompiles it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg.optim._direct import LOOP
from thalweg.optim._kernel import Compiled, Kernel
from thalweg.optim._pieces import PIECE, pieces
from thalweg.optim.transform import Scalars

Work = Callable[..., None]
Fields = tuple[tuple[str, int | None], ...]
_loops: dict[Any, Compiled] = {}


def loop(name: str, key: Any, work: Work, k: Scalars, out: Tensor, *others: Tensor | None) -> None:
    """``work(k, out, *others)``; as one compiled loop if ``k.compiles``.

    Args:
        name, key: of the work in messages; what its code depends on besides the kinds of its arguments.
        work: changes tensors in place. It may ask ``k`` for floats and sequences of them only, and use no
            other tensors than it is given.
        out: of one dimension, or of any two sizes; sizes of ``others`` follow from it or are always the same.
    """
    if not k.values.get("compiles"):
        work(k, out, *others)
        return
    fields, values = _numbers(k)
    key = (name, key, fields)
    if key not in _loops:
        once = _on_packed(work, fields)
        _loops[key] = Compiled(once, once, name, key, LOOP)
    blanks = _blanks(out.device)
    wide = torch.float32 if out.device.type == "mps" else torch.float64
    packed = torch.tensor(values, dtype=wide, device=out.device)
    _loops[key](packed, *blanks, out, None, None, None, *others)


def entries(name: str, key: Any, work: Work, k: Scalars, out: Tensor, *others: Tensor | None) -> None:
    """As :func:`loop`, for tensors of one shape and a work that takes each entry by itself.

    It is given them flat, or eagerly a few rows at a time.
    """
    together = (out, *others)
    given = [one for one in together if one is not None]
    if k.values.get("compiles") and all(one.is_contiguous() for one in given):
        flat, *rest = (None if one is None else one.view(-1).data for one in together)
        assert flat is not None
        loop(name, key, work, k, flat, *rest)
    elif out.dim() == 2 and out.numel() > PIECE:
        for some in pieces(*given):
            rows = iter(some)
            work(k, *(None if one is None else next(rows) for one in together))
    else:
        work(k, *together)


def _numbers(k: Scalars) -> tuple[Fields, list[float]]:
    """The floats and sequences of floats in ``k``: their names and lengths, and all of them in a row."""
    fields: list[tuple[str, int | None]] = []
    values: list[float] = []
    for name, value in k.values.items():
        if isinstance(value, float):
            fields.append((name, None))
            values.append(value)
        elif isinstance(value, tuple | list) and value and all(isinstance(one, float) for one in value):
            fields.append((name, len(value)))
            values += value
    return tuple(fields), values


def _on_packed(work: Work, fields: Fields) -> Kernel:
    """The work as a kernel, which is given its numbers as one tensor."""

    def kernel(packed, places, sums, out, u, gradient, lost, *others):
        numbers = packed.unbind()
        values: dict[str, Any] = {}
        at = 0
        for name, length in fields:
            values[name] = numbers[at] if length is None else tuple(numbers[at : at + length])
            at += length or 1
        work(Scalars(values), out, *others)
        return None, None

    return kernel


@functools.cache
def _blanks(device: torch.device) -> tuple[Tensor, Tensor]:
    """What stands where a pass has the places of its noise and its sums."""
    return torch.zeros(2, dtype=torch.int64, device=device), torch.zeros(
        0, dtype=torch.float64, device=device
    )
