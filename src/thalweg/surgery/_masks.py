"""Which weights stay: masks from scores, by row, layer, whole model, or n of every m."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_pattern(pattern: Any) -> None:
    """Refuse anything but (n, m) with 1 <= n <= m."""
    pair = isinstance(pattern, tuple | list) and len(pattern) == 2 and all(type(n) is int for n in pattern)
    if not pair or not 1 <= pattern[0] <= pattern[1]:
        raise ValueError(f"pattern must be two integers (n, m) with 1 <= n <= m, got {pattern!r}")


def checked_scores(argument: str, name: str, weight: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
    """The scores given for the layer ``name``, on its device; refused unless shaped like its weight."""
    found = scores.get(name)
    if not isinstance(found, Tensor) or found.shape != weight.shape or bool(found.isnan().any()):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{argument} of {name!r} must be a tensor {tuple(weight.shape)} without NaN, got {shape}"
        )
    return found.detach().to(weight.device)


def share(count: int, fraction: float) -> int:
    """``fraction`` of ``count``, rounded down, with 0.29 · 100 = 29."""
    return int(count * fraction + 1e-9)


def keep_highest(
    scores: dict[str, Tensor], sparsity: float, scope: str, pattern: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """True where the weight stays, shaped like the scores; of equal scores the earlier ones go first."""
    if pattern is not None:
        kept, group = pattern
        rows = {name: score.reshape(-1, group) for name, score in scores.items()}
        drops = group - kept
        return {name: _without(rows[name], drops).view(scores[name].shape) for name in scores}
    if scope == "model":
        everything = torch.cat([score.flatten() for score in scores.values()])
        keep = _without(everything[None], share(everything.numel(), sparsity))[0]
        parts = keep.split([score.numel() for score in scores.values()])
        return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
    rows = {
        name: score.flatten(1) if scope == "row" else score.reshape(1, -1) for name, score in scores.items()
    }
    return {
        name: _without(row, share(row.shape[1], sparsity)).view(scores[name].shape)
        for name, row in rows.items()
    }


def _without(rows: Tensor, count: int) -> Tensor:
    """True but for the ``count`` lowest entries of each row."""
    keep = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
    lowest = rows.argsort(dim=1, stable=True)[:, :count]
    return keep.scatter_(1, lowest, False)
