"""The check that every part with decay rates shares."""

from __future__ import annotations

from collections.abc import Sequence

from thalweg._core.checks import check_unit_interval


def check_betas(betas: Sequence[float], count: int) -> None:
    """Refuse anything but ``count`` numbers in [0, 1)."""
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != count:
        raise ValueError(f"betas must be {count} numbers in [0, 1), got {betas!r}")
    for index, beta in enumerate(betas):
        check_unit_interval(f"betas[{index}]", beta)
