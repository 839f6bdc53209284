"""Class means and scatter from sums that batches, and processes, add to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._wrapped import on_every_rank, over_processes

PAIRS = 2**22  # numbers of a table over all classes that are held at once


def rows_of(name: str, features: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Float64 rows (examples, width) and their labels, without those to ignore.

    Labels (n, t) take the first two dimensions of the features for examples, labels (n,) the first; the
    rest is flattened.

    Raises:
        ValueError: shapes do not fit, labels are no classes, or a feature is not finite.
    """
    places = labels.dim()
    if features.dim() <= places or features.shape[:places] != labels.shape:
        raise ValueError(
            f"labels must have the leading dimensions of {name}, got {tuple(labels.shape)} for "
            f"{tuple(features.shape)}"
        )
    wanted = labels.flatten()
    rows = features.detach().flatten(places).flatten(0, places - 1)
    keep = wanted != ignore_index
    if not bool(keep.all()):
        rows, wanted = rows[keep], wanted[keep]
    if wanted.is_floating_point() or wanted.is_complex() or bool((wanted < 0).any()):
        got = labels.dtype if labels.is_floating_point() or labels.is_complex() else wanted.min().item()
        raise ValueError(f"labels must be classes, integers of at least 0, got {got}")
    rows = rows.double()
    if not bool(rows.isfinite().all()):
        raise NotFiniteError(f"{name} must be finite, got NaN or infinity")
    return rows, wanted.to(rows.device, torch.int64)


class ClassSums:
    """Sums of rows by class, and their scatter about its mean; grows with the largest label seen.

    The scatter is never a difference of squares: beside a mean far from the origin nothing would be left.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.counts = torch.zeros(0)
        self.within = 0.0

    def add(self, rows: Tensor, labels: Tensor) -> None:
        if self.sums is None:
            self.sums, self.counts = rows.new_zeros(0, rows.shape[1]), rows.new_zeros(0)
        top = int(labels.max()) + 1 if len(labels) else 0
        self._grow(top)
        assert self.sums is not None
        sums = torch.zeros_like(self.sums).index_add(0, labels, rows)
        counts = torch.zeros_like(self.counts).index_add(0, labels, torch.ones_like(rows[:, 0]))
        means = sums / counts.clamp_min(1)[:, None]
        apart = (means - self.every_mean).square().sum(1)
        shared = counts * self.counts / (counts + self.counts).clamp_min(1)
        self.within += (rows - means[labels]).square().sum().item() + (shared * apart).sum().item()
        self.sums, self.counts = self.sums + sums, self.counts + counts

    def _grow(self, top: int) -> None:
        assert self.sums is not None
        if (more := top - len(self.counts)) > 0:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(more, self.sums.shape[1])])
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])

    def over(self, group: Any, *, coincide: bool = False) -> ClassSums:
        """The same, summed over processes, and checked.

        Raises:
            ValueError: fewer than two classes have examples, or, unless ``coincide``, their means are equal.
        """
        assert self.sums is not None
        top = over_processes(torch.tensor(len(self.counts), device=self.sums.device), group, "max")
        self._grow(int(top))
        whole = ClassSums()
        whole.sums, whole.counts = over_processes(self.sums, group), over_processes(self.counts, group)
        apart = (self.every_mean - whole.every_mean).square().sum(1)
        own = self.sums.new_tensor(self.within) + ((self.counts * apart).sum() if group is not None else 0)
        whole.within = over_processes(own, group).item()
        if (classes := int((whole.counts > 0).sum())) < 2:
            raise ValueError(f"labels must hold examples of two classes or more, got {classes}")
        if not coincide and not bool(whole.centred.any()):
            raise ValueError("features must differ between classes, got class means that coincide")
        return whole

    @property
    def present(self) -> Tensor:
        """Classes with examples, in order."""
        return self.counts.nonzero().flatten()

    @property
    def examples(self) -> int:
        return int(self.counts.sum())

    @property
    def every_mean(self) -> Tensor:
        """Means of all classes, zero for those without examples."""
        assert self.sums is not None
        return self.sums / self.counts.clamp_min(1)[:, None]

    @property
    def means(self) -> Tensor:
        """Means of the classes that have examples, shape (classes, width)."""
        return self.every_mean[self.present]

    @property
    def centred(self) -> Tensor:
        """The means about their own mean, each class counting once."""
        means = self.means
        return means - means.mean(0)

    @property
    def variability(self) -> float:
        """Tr S_W / Tr S_B; of class means that coincide infinite, NaN if the features do as well."""
        within, between = self.within / self.examples, self.centred.square().sum(1).mean().item()
        return within / between if between else math.inf if within else math.nan


def sums_of(
    features: Tensor, labels: Tensor, ignore_index: int, group: Any
) -> tuple[ClassSums, Tensor, Tensor]:
    """Sums over all processes, and the rows and labels of this one."""

    def checked() -> tuple[Tensor, Tensor]:
        return rows_of("features", features, labels, ignore_index)

    rows, wanted = on_every_rank(checked, group, features.device, "features and labels")
    sums = ClassSums()
    sums.add(rows, wanted)
    return sums.over(group), rows, wanted


def off_frame(vectors: Tensor, beside: float) -> float:
    """Frobenius distance of the cosines between vectors from 1 for one's own and ``beside`` for others'."""
    unit = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-300)
    total, block = 0.0, max(1, PAIRS // len(unit))
    for start in range(0, len(unit), block):
        off = unit[start : start + block] @ unit.T - beside
        off.diagonal(start).add_(beside - 1)
        total += off.square_().sum().item()
    return math.sqrt(total)


@dataclass(frozen=True)
class Head:
    weight: Tensor
    bias: Tensor | None


class Scatter:
    """The second pass: scatter within classes along the directions between them, and disagreements."""

    def __init__(self, sums: ClassSums, head: Head | None):
        self.means, self.centred, self.present = sums.means, sums.centred, sums.present
        _, values, self.directions = torch.linalg.svd(self.centred, full_matrices=False)
        # S_B = M'M / K has rank K - 1 at most; below 1e-6 of its largest eigenvalue is rounding.
        eigenvalues = values.square() / len(self.means)
        keep = eigenvalues > 1e-6 * eigenvalues[0]
        self.directions, self.eigenvalues = self.directions[keep], eigenvalues[keep]
        self.head = head
        self.scatter = torch.zeros_like(self.eigenvalues)
        self.disagree = torch.zeros((), dtype=torch.float64, device=self.means.device)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        position = torch.searchsorted(self.present, labels.contiguous())
        self.scatter += ((rows - self.means[position]) @ self.directions.T).square().sum(0)
        if self.head is None:
            return
        # With a vocabulary of classes, distances of all rows would be many times as large as the features.
        for some in rows.split(max(1, PAIRS // len(self.head.weight))):
            nearest = self.present[torch.cdist(some, self.means).argmin(1)]
            logits = some @ self.head.weight.T + (0 if self.head.bias is None else self.head.bias)
            self.disagree += (logits.argmax(1) != nearest).sum()

    def summed(self, group: Any, examples: int) -> tuple[float, float]:
        """NC1 and NC4."""
        packed = over_processes(torch.cat([self.scatter, self.disagree.reshape(1)]), group) / examples
        return (packed[:-1] / self.eigenvalues).sum().item() / len(self.means), packed[-1].item()
