"""Where one of two processes has nothing to say, or nothing finite, both are told, and neither waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import leave
from thalweg.probe import (
    ExampleForgetting,
    attention_logits,
    class_variability,
    dormant_neurons,
    example_alignment,
    example_gradient_norms,
    example_losses,
    feature_diversity,
    feature_ranks,
    gradient_coherence,
    gradient_signal_to_noise,
    hub_neurons,
    local_complexity,
    neural_collapse,
    neural_collapse_of,
    opposing_gradients,
    saturated_units,
)

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Sometimes(nn.Module):
    """Works with activations on one process, and without any, or with NaN, on the other."""

    def __init__(self, active: bool, value: float = 1.0):
        super().__init__()
        self.active, self.value = active, value
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(F.relu(self.value * h) if self.active else h)


class Attends(nn.Module):
    def __init__(self, active: bool):
        super().__init__()
        self.active, self.layer = active, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.layer(x)
        return F.scaled_dot_product_attention(q, q, q) if self.active else q


def each(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def said(rank: int, group: Any) -> dict[str, str]:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(rank))
    broken = torch.where(torch.tensor(rank == 1), torch.nan, x)
    silent, not_finite = Sometimes(rank == 0), Sometimes(True, 1.0 if rank == 0 else torch.nan)
    parallel = DistributedDataParallel(Sometimes(True))
    batch = broken, LABELS
    seen = ExampleForgetting(10, group=group)
    seen.update([0, 1, 2 + rank], [True] * 3)
    calls = {
        "forgetting": lambda: seen.update([0, 9 + rank], [False] * 2),
        "forgetting, correct": lambda: seen.update([0], [1 if rank else False]),
        "attention": lambda: attention_logits(Attends(rank == 0), x[:, None], group=group),
        "dormant": lambda: dormant_neurons(silent, x, group=group),
        "dormant, NaN": lambda: dormant_neurons(not_finite, x, group=group),
        "hubs": lambda: hub_neurons(silent, x, group=group),
        "saturated": lambda: saturated_units(silent, x, group=group),
        "ranks": lambda: feature_ranks(silent, x, group=group),
        "ranks, NaN": lambda: feature_ranks(not_finite, x, group=group),
        "diversity": lambda: feature_diversity(silent, x, group=group),
        "diversity, NaN": lambda: feature_diversity(not_finite, x, group=group),
        "diversity, labels": lambda: feature_diversity(Sometimes(True), x, LABELS[: 6 - rank], group=group),
        "complexity": lambda: local_complexity(silent, x, radius=0.1, vertices=4, group=group),
        "collapse": lambda: neural_collapse(Sometimes(True), batch, group=group),
        "collapse, nothing": lambda: neural_collapse(
            Sometimes(True), (x[: 6 - 6 * rank], LABELS[: 6 - 6 * rank]), group=group
        ),
        "collapse of features": lambda: neural_collapse_of(broken, LABELS, group=group),
        "variability": lambda: class_variability(x, LABELS[: 6 - rank], group=group),
        "losses": lambda: example_losses(parallel, batch, each),
        "norms": lambda: example_gradient_norms(parallel, batch, each),
        "alignment": lambda: example_alignment(parallel, batch, each),
        "coherence": lambda: gradient_coherence(parallel, batch, each),
        "signal to noise": lambda: gradient_signal_to_noise(parallel, batch, each),
        "opposing": lambda: opposing_gradients(parallel, batch, each, [0, 1], [2]),
        "opposing, position": lambda: opposing_gradients(parallel, (x, LABELS), each, [0, 6 * rank], [2]),
    }
    answers = {}
    for name, probe in calls.items():
        try:
            probe()
            answers[name] = "nothing"
        except ValueError as error:
            answers[name] = str(error)
    assert seen.counts().presentations.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    return answers


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # Who waits for another gives up after a while, with an error that is no ValueError.
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(said(rank, distributed.group.WORLD), f"{folder}/{rank}.pt")
    leave()


def test_what_fails_on_one_process_is_an_error_on_both(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, own in second.items():
        assert own != "nothing" and "failed on another" not in own, name
        if name.startswith("forgetting"):
            assert "must fit on every process of group, and did not on another" in first[name], name
        elif name != "ranks, NaN":  # whose numbers are all processes' before they are looked at
            assert "must succeed on every rank of group, and failed on another" in first[name], name


class Expert(nn.Module):
    """An expert to which only examples of one process go."""

    def __init__(self, active: bool):
        super().__init__()
        self.active = active
        torch.manual_seed(0)
        self.shared = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.expert = nn.Sequential(nn.Linear(6, 5), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.shared(x)
        return self.expert(h) if self.active else h


def complexity(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = local_complexity(
        Expert(rank == 1), points(rank), radius=0.5, vertices=8, group=distributed.group.WORLD
    )
    torch.save([found.layers, found.density], f"{folder}/{rank}.pt")
    leave()


def points(rank: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("rank", [0, 1])
def test_regions_of_an_expert_are_those_of_the_process_in_which_it_ran(tmp_path, rank):
    mp.spawn(complexity, (str(tmp_path),), nprocs=2)
    layers, density = torch.load(tmp_path / f"{rank}.pt")
    alone = [local_complexity(Expert(r == 1), points(r), radius=0.5, vertices=8) for r in range(2)]
    assert alone[1].layers["expert.1"] > 0
    assert layers["expert.1"] == pytest.approx(alone[1].layers["expert.1"])
    assert density["expert.1"] == pytest.approx(alone[1].density["expert.1"])
    assert layers["shared.1"] == pytest.approx(sum(one.layers["shared.1"] for one in alone) / 2)
