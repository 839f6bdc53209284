"""Two processes that each hold half of the data, and a model under DDP: the numbers of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import leave
from thalweg.probe import (
    accuracy_gap,
    backward_signal,
    boundary_points,
    dormant_neurons,
    effective_learning_rate,
    feature_diversity,
    feature_ranks,
    gradient_norms,
    hub_neurons,
    layer_shares,
    local_complexity,
    neural_collapse,
    plasticity,
    saturated_units,
    scale_dependence,
    weight_gradient_alignment,
    weight_growth,
    weight_statistics,
)

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# The second half lacks class 3, the first classes 0 to 2 in equal number.
LABELS = torch.tensor([3, 0, 1, 2] * 3 + [0, 1, 2] * 4)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    nn.init.zeros_(layers[-1].bias)  # so that several classes are predicted
    return nn.Sequential(*layers).double()


class Experts(nn.Module):
    """Examples below zero go to one expert, the others to another, which runs only if there are any."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(2)
        )
        self.double()

    def forward(self, x):
        result = torch.zeros_like(x)
        for expert, chosen in zip(self.experts, (x[:, 0] < 0, x[:, 0] >= 0), strict=True):
            if chosen.any():
                result[chosen] = expert(x[chosen])
        return result


def experts_readings(part: slice, group: Any) -> list[Any]:
    x = X.clone()
    x[:, 0] = torch.where(torch.arange(len(X)) < 12, -1.0, 1.0)
    model = Experts()
    dormant = dormant_neurons(model, x[part], threshold=0.5, group=group)
    saturated = saturated_units(model, x[part], slope=0.5, share=0.5, group=group)
    scores = {name: score.tolist() for name, score in dormant.scores.items()}
    ranks = {name: vars(one) for name, one in feature_ranks(model, x[part], group=group).items()}
    diverse = {name: vars(one) for name, one in feature_diversity(model, x[part], group=group).items()}
    return [scores, dormant.total, saturated.fraction, saturated.linear, ranks, diverse]


def split_readings(model: nn.Module, part: slice, group: Any) -> dict[str, Any]:
    """Probes whose sums go over the processes."""
    x, labels = X[part], LABELS[part]
    dormant = dormant_neurons(model, x, threshold=0.5, group=group)
    saturated = saturated_units(model, x, slope=0.5, share=0.5, group=group)
    hubs = hub_neurons(model, x, factor=1.5, group=group)
    collapse = neural_collapse(model, (x, labels), group=group, batch_size=5)
    return {
        "dormant": [dormant.fraction, dormant.total, dormant.dead, dormant.scores["2"].tolist()],
        "saturated": [saturated.fraction, saturated.linear, saturated.flat["4"].tolist()],
        "experts": experts_readings(part, group),
        "hubs": [hubs.units, hubs.carried, hubs.active_units],
        "diversity": [vars(one) for one in feature_diversity(model, x, labels, group=group).values()],
        "collapse": vars(collapse),
        "ranks": {name: vars(one) for name, one in feature_ranks(model, x, group=group).items()},
        "complexity": vars(local_complexity(model, x, radius=0.3, vertices=8, group=group))
        | {"points": None},
    }


def local_readings(model: nn.Module) -> dict[str, Any]:
    """Probes that each process makes by itself, on the same data."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach() / 2 for name, p in net().named_parameters()}
    for index, p in enumerate(model.parameters()):
        p.grad = (1 + index) * p.detach() ** 2
    return {
        "plasticity": vars(plasticity(model, X, tasks=1, steps=5, rates=(1e-2,))),
        "growth": weight_growth(model, before).growth,
        "rates": effective_learning_rate(optimizer, model),
        "dependence": scale_dependence(model, X, "0.weight"),
        "boundary": boundary_points(model, X, halvings=5).tolist(),
        "gradients": vars(gradient_norms(model)),
        "alignment": weight_gradient_alignment(model),
        "backward": vars(backward_signal(model, X)),
        "shares": layer_shares(torch.cat([p.detach().flatten() for p in net().parameters()]), model),
        "statistics": vars(weight_statistics(model)),
        "accuracy": vars(accuracy_gap(model, (X, LABELS), (X[:5], LABELS[:5]))),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(net())
    part = slice(0, 12) if rank == 0 else slice(12, 24)
    answers = {"split": split_readings(model, part, distributed.group.WORLD)}
    if rank == 0:  # alone: nothing in a probe may wait for the others
        answers["local"] = local_readings(model)
    torch.save(answers, f"{folder}/{rank}.pt")
    leave()


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same(found[name], value)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_each_process_gets_the_numbers_of_the_whole_data(answers):
    expected = split_readings(net(), slice(None), None)
    for answer in answers:
        same(answer["split"], expected)


def test_under_ddp_one_process_alone_gets_the_numbers_of_the_plain_model(answers):
    same(answers[0]["local"], local_readings(net()))


def test_a_compiled_model_is_probed_as_the_model_inside():
    compiled = torch.compile(net())
    same(split_readings(compiled, slice(None), None), split_readings(net(), slice(None), None))
