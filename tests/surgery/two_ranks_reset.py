"""What each of two gloo processes does for test_two_ranks_reset.py: score its own data, and reset.

Rank 0 writes what both have then to the file named first on the command line.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import join, leave
from thalweg.probe import dormant_neurons
from thalweg.surgery import reset_dormant
from thalweg.watch.remedies import renewed


def model() -> nn.Sequential:
    """Of 12 units one is dead for all, one for what rank 0 sees and one for what rank 1 does."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        made[0].weight[:3], made[0].bias[:3] = 0, 0
        made[0].weight[1, 0], made[0].weight[2, 0] = -1, 1
    return made


def batch(rank: int) -> torch.Tensor:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(rank))
    x[:, 0] = x[:, 0].abs() * (1 - 2 * rank)
    return x


def remedied(rank: int) -> dict[str, torch.Tensor]:
    """Weights behind some steps with the remedy for dormant units pasted into the loop."""
    replica = DistributedDataParallel(model())
    opt = torch.optim.Adam(replica.parameters())
    names = {"model": replica, "opt": opt}
    exec(renewed().code, names)
    for part in batch(rank).split(16):
        names["batch"] = (part, None)
        opt.zero_grad()
        replica(part).square().mean().backward()
        opt.step()
    return replica.module.state_dict()


def main() -> None:
    rank = join()
    replica = DistributedDataParallel(model())
    torch.manual_seed(100 + rank)  # as training loops do, so that dropout differs
    report = reset_dormant(replica, dormant_neurons(replica, batch(rank)))
    found = {"units": report.units, "weights": replica.module.state_dict(), "trained": remedied(rank)}
    both: list = [None, None]
    dist.all_gather_object(both, found)
    if rank == 0:
        torch.save(both, sys.argv[1])
    leave()


if __name__ == "__main__":
    main()
