"""What each of two gloo processes does for test_two_ranks_counts.py: count and measure its part of the data.

Rank 0 writes what both found to the file named first on the command line.
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import join, leave
from thalweg.probe import ExampleForgetting, attention_logits, output_logits
from thalweg.tasks import GPT

EXAMPLES, STEPS = 30, 25


def part(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and correctness; the processes have different sizes, one of them sometimes nothing."""
    source = torch.Generator().manual_seed(2 * step + rank)
    size = (step * (3 * rank + 1)) % 11
    indices = torch.randperm(EXAMPLES, generator=source)[:size]
    return indices, torch.rand(size, generator=source) < 0.6


def model_and_tokens() -> tuple[GPT, torch.Tensor]:
    return GPT(7, 6, layers=2, heads=2, width=8, seed=0), torch.arange(24).view(4, 6) % 7


def logits(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The second part is the longer one, and has positions that do not count."""
    values = 3 * torch.randn(2 + 3 * rank, 5, generator=torch.Generator().manual_seed(rank))
    targets = torch.zeros(len(values), dtype=torch.int64)
    targets[3:] = -100
    return values, targets


def main() -> None:
    join()
    rank, everyone = dist.get_rank(), dist.group.WORLD
    seen = ExampleForgetting(EXAMPLES, group=everyone)
    for step in range(STEPS):
        seen.update(*part(step, rank))
    model, tokens = model_and_tokens()
    found = {
        "forgetting": seen.state_dict(),
        "output": vars(output_logits(*logits(rank), group=everyone)),
        "attention": vars(
            attention_logits(DistributedDataParallel(model), tokens.chunk(2)[rank], group=everyone)
        ),
    }
    both: list = [None, None]
    dist.all_gather_object(both, found)
    if rank == 0:
        torch.save(both, sys.argv[1])
    leave()


if __name__ == "__main__":
    main()
