"""Linear layers as two thin ones, at ranks that fit each matrix (WeLore, arXiv 2407.11239)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_count, check_number
from thalweg._core.precision import without_autocast
from thalweg.surgery._calibration import at_least_float
from thalweg.surgery._edit import (
    EditReport,
    LayerEdit,
    copied_with,
    refuse_unless,
    relative_error,
    replace_module,
    report,
    size_in_bytes,
    weight_of,
)
from thalweg.surgery._references import refuse_listed
from thalweg.surgery.rank_allocation import RankAllocation, allocate_ranks

__all__ = ["LowRankLinear", "factorize"]


class LowRankLinear(nn.Module):
    """A linear layer [..., in_features] -> [..., out_features] whose matrix is ``up`` @ ``down``.

    Args:
        down: weight of the first factor, (rank, in_features).
        up: weight of the second factor, (out_features, rank).
        bias: (out_features,) or None.
    """

    def __init__(self, down: Tensor, up: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if down.dim() != 2 or up.dim() != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(
                "down and up must be (rank, in) and (out, rank), "
                f"got {tuple(down.shape)} and {tuple(up.shape)}"
            )
        self.rank, self.in_features = down.shape
        self.out_features = up.shape[0]
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.bias = None if bias is None else nn.Parameter(bias)

    @property
    def weight(self) -> Tensor:
        """The matrix (out_features, in_features) that the two factors make."""
        return self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


@torch.no_grad()
@without_autocast()
def factorize(
    model: nn.Module,
    reduction: float = 0.5,
    *,
    ranks: RankAllocation | Mapping[str, int] | None = None,
    method: str = "welore",
    floor: int = 1,
    layers: Iterable[str] | None = None,
    min_ratio: float | None = None,
    others: str = "dense",
    freeze: bool = False,
) -> tuple[nn.Module, EditReport]:
    r"""Replace linear layers by two factors of lower rank, :math:`U_r S_r^{1/2}` and :math:`S_r^{1/2} V_r^T`.

    Without data. No rank-r matrix is nearer to the old one: the squared error is the sum of the dropped
    :math:`s^2`. A layer becomes a :class:`LowRankLinear`, with its bias, in the place of the old one.

    Args:
        model: stays as it is; the result is an edited copy.
        reduction, method, floor: as for :func:`allocate_ranks`, unless ``ranks`` are given.
        ranks: layer to rank, each in [1, min(in, out)].
        layers: names; None for those that ``ranks`` name, or else the linear layers in the model's repeated
            blocks, or all but the last.
        min_ratio: factorise where removed / min(in, out) is above this, in [0, 1]. None: where r(in + out)
            numbers are fewer than in · out. The paper's scripts have 0 and 0.4999.
        others: the matrices that are not factorised stay as they are, ``"dense"``, or get the lower rank in
            one matrix of the old size, ``"merged"``.
        freeze: only the two factors need a gradient, as WeLore fine-tunes; no bias, and nothing else.

    Returns:
        The edited copy, and the report with the bytes that it really takes.

    Raises:
        ValueError: for a bad argument; a layer is unknown, no plain linear one, shared, tied, parametrized or
            on the meta device.
    """
    check_choice("others", others, ("dense", "merged"))
    if min_ratio is not None:
        min_ratio = check_number("min_ratio", min_ratio, 0, 1)
    if ranks is None:
        ranks = allocate_ranks(model, reduction, method=method, floor=floor, layers=layers)
    wanted = ranks.ranks if isinstance(ranks, RankAllocation) else dict(ranks)
    new, chosen = copied_with(model, wanted if layers is None else layers)
    refuse_listed(new, chosen)
    for name, layer in chosen.items():
        if name not in wanted:
            raise ValueError(f"ranks must hold every layer to factorise, got none for {name!r}")
        check_count(f"ranks of {name!r}", wanted[name])
        most = min(weight_of(layer).shape)
        refuse_unless(wanted[name] <= most, name, layer, f"of at most rank {most}, got {wanted[name]}")
    if freeze:
        new.requires_grad_(False)
    edits = {
        name: _factorize(new, name, layer, wanted[name], min_ratio, others) for name, layer in chosen.items()
    }
    return new, report(model, edits)


def _factorize(
    model: nn.Module, name: str, layer: nn.Module, rank: int, min_ratio: float | None, others: str
) -> LayerEdit:
    weight = weight_of(layer)
    (rows, columns), most = weight.shape, min(weight.shape)
    thin = rank * (rows + columns) < rows * columns if min_ratio is None else 1 - rank / most > min_ratio
    size = size_in_bytes(layer)
    if rank == most or (not thin and others == "dense"):
        return LayerEdit(f"dense, rank {most}", size, size, 0.0)
    u, s, vh = torch.linalg.svd(weight.detach().to(at_least_float(weight)), full_matrices=False)
    root = s[:rank].sqrt()
    up = (u[:, :rank] * root).to(weight)
    down = (root[:, None] * vh[:rank]).to(weight)
    error = relative_error(weight, up.double() @ down.double())
    if not thin:
        weight.copy_(up @ down)
        return LayerEdit(f"rank {rank} of {most}, in one matrix", size, size, error)
    bias = layer.bias
    made = LowRankLinear(
        down.contiguous(), up.contiguous(), bias.detach() if isinstance(bias, Tensor) else None
    )
    if made.bias is not None and isinstance(bias, Tensor):
        made.bias.requires_grad_(bias.requires_grad)
    replace_module(model, name, made)
    return LayerEdit(f"rank {rank} of {most}", size, size_in_bytes(made), error)
