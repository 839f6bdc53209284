"""What each of two gloo processes does for test_ranks.py: train one model on its part of every batch.

Rank 0 writes what both found to the file named first on the command line.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import join, leave
from thalweg.continual import continual_backprop

STEPS, BATCH = 25, 8
UTILITIES = ("contribution", "zero_contribution", "adaptable_contribution", "random")


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 4, 6), nn.GELU(), nn.Linear(6, 3)),
    ).double()


def parts(step: int) -> tuple[torch.Tensor, ...]:
    """One batch for each rank, of different sizes; the second rank has none now and then."""
    source = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 2, 3, 3, generator=source, dtype=torch.float64)
    return x.split([5, 3]) if step % 4 else x.split([BATCH, 0])


def train(model: nn.Module, batches, utility: str, seed: int, ranks: int) -> dict:
    """``batches``: step to this process's part; its loss is its share of the whole batch's mean."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    settings = {"rate": 0.04, "maturity": 3, "decay": 0.8, "utility": utility, "generator": generator}
    renewal = continual_backprop(model, optimizer, **settings)
    done = []
    for step in range(STEPS):
        optimizer.zero_grad()
        out = model(batches(step))
        # DistributedDataParallel takes the mean over ranks of gradients.
        (ranks * out.square().sum() / BATCH).backward()
        optimizer.step()
        done.append(renewal.step())
    return {
        "done": done,
        "weights": [p.detach() for p in model.parameters()],
        "moments": [state["exp_avg_sq"] for state in optimizer.state.values()],
        "renewal": {name: dict(entry) for name, entry in renewal.state_dict()["layers"].items()},
    }


def blind() -> str:
    """The error of a step that followed no pass, on this rank."""
    model = DistributedDataParallel(build())
    renewal = continual_backprop(model, torch.optim.SGD(model.parameters(), lr=0.1))
    try:
        renewal.step()
    except RuntimeError as error:
        return str(error)
    return ""


def sharded() -> str:
    """What is said of a layer whose weight is spread over the ranks."""
    model = build()
    mesh = init_device_mesh("cpu", (2,))
    model[3].weight = nn.Parameter(distribute_tensor(model[3].weight.detach(), mesh, [Shard(0)]))
    try:
        continual_backprop(model, torch.optim.SGD(model.parameters(), lr=0.1))
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    rank = join()
    found = {
        utility: train(
            DistributedDataParallel(build()), lambda step: parts(step)[rank], utility, 3 + 90 * rank, 2
        )
        for utility in UTILITIES
    }
    found |= {"blind": blind(), "sharded": sharded()}
    both: list = [None, None]
    dist.all_gather_object(both, found)
    if rank == 0:
        torch.save(both, sys.argv[1])
    leave()


if __name__ == "__main__":
    main()
