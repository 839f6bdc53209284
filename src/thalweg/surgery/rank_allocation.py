"""Which rank each matrix keeps: one threshold for all spectra (WeLore, arXiv 2407.11239), or equal shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_count, check_unit_interval
from thalweg.surgery._calibration import at_least_float
from thalweg.surgery._edit import checked, chosen_layers, weight_of

__all__ = ["RankAllocation", "allocate_ranks"]


@dataclass(frozen=True)
class RankAllocation:
    """How many singular directions each matrix keeps.

    Attributes:
        ranks: layer to rank.
        full: layer to min(rows, columns).
        threshold: the k under which normalised singular values are dropped; None for uniform ranks.
    """

    ranks: dict[str, int]
    full: dict[str, int]
    threshold: float | None

    @property
    def reduction(self) -> float:
        """Mean rank reduction that was reached: removed directions / all directions."""
        return 1 - sum(self.ranks.values()) / sum(self.full.values())


@torch.no_grad()
def allocate_ranks(
    model_or_spectra: nn.Module | Mapping[str, Tensor],
    reduction: float = 0.5,
    *,
    method: str = "welore",
    floor: int = 1,
    layers: Iterable[str] | None = None,
) -> RankAllocation:
    r"""Ranks for a wanted mean rank reduction R = removed directions / all directions.

    ``"welore"`` (arXiv 2407.11239) drops, in every matrix, the directions whose normalised singular value
    :math:`(s - s_{\min}) / (s_{\max} - s_{\min})` is below one threshold k for the whole model. R never falls
    with k, so that the wanted k is a value of the pooled, sorted spectra: no search. Equal values stay or go
    together, whichever comes nearer to R; so do the smallest of all matrices, which are all normalised to 0.
    A matrix whose singular values are all equal has no tail and keeps everything, unless they are all zero.
    ``"uniform"`` drops round(R · min(m, n)) of each.

    Rank reduction is not size reduction: two factors of rank r need r(m + n) numbers in place of mn.

    Args:
        model_or_spectra: a model, whose matrices are decomposed in at least float32, or layer to singular
            values (n,) of any order.
        reduction: R, in [0, 1).
        floor: every matrix keeps at least so many directions (or all it has). One huge singular value pushes
            all others of its matrix under k.
        layers: of a model; None for the linear layers in its repeated blocks, or all but the last.

    Raises:
        ValueError: for a bad argument, spectra that are no vectors of finite values >= 0, or a layer that is
            not a linear one with a weight of its own.
    """
    reduction = check_unit_interval("reduction", reduction)
    check_choice("method", method, ("welore", "uniform"))
    check_count("floor", floor)
    if isinstance(model_or_spectra, Mapping):
        spectra = _checked_spectra(model_or_spectra)
    else:
        spectra = {
            name: singular_values(weight_of(layer))
            for name, layer in chosen_layers(checked(model_or_spectra), layers).items()
        }
    full = {name: len(values) for name, values in spectra.items()}
    if method == "uniform":
        ranks = {name: max(min(floor, n), n - round(reduction * n)) for name, n in full.items()}
        return RankAllocation(ranks, full, None)
    # What the floor keeps can never be dropped, so it is no candidate for the threshold.
    tails = {
        name: normalised(values)[min(floor, len(values)) :].cpu().double() for name, values in spectra.items()
    }
    threshold = _threshold(torch.cat(list(tails.values())), round(reduction * sum(full.values())))
    ranks = {name: full[name] - int((tail < threshold).sum()) for name, tail in tails.items()}
    return RankAllocation(ranks, full, threshold)


def _threshold(values: Tensor, count: int) -> float:
    """The least number with about ``count`` of the values below it: equal values stay or go together."""
    values = values.sort().values
    if count >= len(values):
        return float("inf")
    tied = values[count]
    below, through = int((values < tied).sum()), int((values <= tied).sum())
    if count - below <= through - count:
        return tied.item()
    return values[through].item() if through < len(values) else float("inf")


def singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().to(at_least_float(weight)))


def normalised(values: Tensor) -> Tensor:
    """(s - s_min) / (s_max - s_min), largest first; ones for a flat spectrum, zeros for a zero matrix."""
    values = values.sort(descending=True).values
    spread = values[0] - values[-1]
    if spread > 0:
        return (values - values[-1]) / spread
    return torch.full_like(values, 1.0 if values[0] > 0 else 0.0)


def _checked_spectra(spectra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not spectra:
        raise ValueError("model_or_spectra must hold at least one spectrum, got none")
    for name, values in spectra.items():
        vector = isinstance(values, Tensor) and values.dim() == 1 and len(values) > 0
        if not vector or not bool((values.isfinite() & (values >= 0)).all()):
            raise ValueError(
                f"model_or_spectra must map layers to vectors (n,) of finite singular values >= 0, "
                f"got {values!r} for {name!r}"
            )
    return dict(spectra)
