"""A model or loss that talks to other processes: rank 0's readings must not reach into their training."""

import pytest
import torch
from tests.gloo_pair import run_both

from thalweg.watch import all_sensors

SCRIPT = """
import sys, warnings
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
import thalweg
from gloo_pair import join, leave

WHERE = "{where}"
warnings.simplefilter("ignore")


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        mean = hidden.detach().mean(0)
        if WHERE == "model":
            dist.all_reduce(mean)
        return self.last(hidden - 0.1 * mean)


def loss_fn(model, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    if WHERE == "loss_fn":
        total = loss.detach().clone()
        dist.all_reduce(total)
        loss = loss * (1 + 0.01 * total)
    return loss


def train(rank, budget):
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Gated())
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1 + rank)
    with thalweg.watch(model, opt, loss_fn=loss_fn, budget=budget, store=None) as run:
        for _ in range(30):
            batch = torch.randn(32, 8), torch.randint(0, 4, (32,))
            loss = loss_fn(model, batch)
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
            opt.zero_grad()
    return run.disabled, [p.detach().clone() for p in model.parameters()]


rank = join()
_, plain = train(rank, 0)
disabled, watched = train(rank, 1e9)
if rank == 0:
    torch.save((plain, watched, disabled), sys.argv[1])
leave()
"""


@pytest.mark.parametrize("where", ["model", "loss_fn", "nowhere"])
def test_what_waits_for_other_processes_is_not_run_and_training_is_the_same(tmp_path, where):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("{where}", where))
    plain, watched, disabled = torch.load(run_both(str(script), tmp_path, timeout=240))
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    running = {one.name for one in all_sensors() if one.runs}
    using = {one.name for one in all_sensors() if "loss_fn" in one.needs}
    assert disabled.keys() == {"model": running, "loss_fn": using, "nowhere": set()}[where]
    assert all("communicates with other processes (c10d::allreduce_)" in why for why in disabled.values())
