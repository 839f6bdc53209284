"""Under DDP each process gathers its own batch statistics; a reading of all is that of the first one's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import leave
from thalweg.probe import (
    dormant_neurons,
    example_alignment,
    example_gradient_norms,
    example_losses,
    feature_diversity,
    feature_ranks,
    gradient_coherence,
    gradient_signal_to_noise,
    local_complexity,
    neural_collapse,
    opposing_gradients,
    saturated_units,
)

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X[12:] = 3 * X[12:] + 1
LABELS = torch.arange(24) % 3
PARTS = (slice(0, 12), slice(12, 24))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def each(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def readings(model: nn.Module, part: slice, group: Any) -> dict[str, Any]:
    x, labels = X[part], LABELS[part]
    batch, members = (x, labels), ([0], [1]) if group is not None else ([0, 12], [1, 13])
    return {
        "dormant": dormant_neurons(model, x, group=group).scores["2"].tolist(),
        "flat": saturated_units(model, x, slope=0.5, group=group).flat["2"].tolist(),
        "ranks": feature_ranks(model, x, group=group)["2"].effective_rank,
        "diversity": feature_diversity(model, x, group=group)["2"].example_cosine,
        "complexity": local_complexity(model, x, radius=0.3, vertices=8, layers=["1"], group=group).total,
        "collapse": neural_collapse(model, (x, labels), group=group).nc1,
        "losses": example_losses(model, batch, each).tolist(),
        "norms": example_gradient_norms(model, batch, each).norms.tolist(),
        "alignment": example_alignment(model, batch, each).cosines.tolist(),
        "coherence": gradient_coherence(model, batch, each).alpha,
        "ratio": gradient_signal_to_noise(model, batch, each).mean,
        # In evaluation mode; in training mode each process normalises by its own examples, as its steps do.
        "opposing": opposing_gradients(model.eval(), batch, each, *members).cosine,
    }


def by_its_own_examples() -> float:
    """Cosine of the groups' gradients where each part is normalised by itself, by autograd alone."""
    groups = []
    for member in (0, 1):
        model = net()
        sum(each(model, (X[part], LABELS[part]))[member] for part in PARTS).backward()
        groups.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return torch.nn.functional.cosine_similarity(*groups, dim=0).item()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(net())
    waiting = model(X[PARTS[rank]]).square().mean()  # gathers statistics, and is in the middle of a step
    before = [b.clone() for b in model.module.buffers()]
    batch = X[PARTS[rank]], LABELS[PARTS[rank]]
    trained = opposing_gradients(model, batch, each, [0], [1]).cosine
    answer = readings(model, PARTS[rank], distributed.group.WORLD) | {"trained": trained}
    model.train()
    assert all(torch.equal(b, old) for b, old in zip(model.module.buffers(), before, strict=True))
    waiting.backward()
    torch.save(answer, f"{folder}/{rank}.pt")
    leave()


def test_every_process_gets_the_numbers_of_the_first_ones_statistics(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    model = net()
    model(X[PARTS[0]])
    expected = readings(model, slice(None), None) | {"trained": by_its_own_examples()}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
