"""Of processes that train together only the first looks and writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import RunStore

WORKER = """
import sys, torch, torch.distributed as dist, thalweg
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from gloo_pair import leave

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
source = torch.Generator().manual_seed(rank)
x, y = torch.randn(64, 8, generator=source), torch.randint(0, 4, (64,), generator=source)
loss_fn = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])

def train(wrap, store):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    model = wrap(net)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"loss_fn": loss_fn, "evaluate": ((x, y), (x, y)), "budget": 1e9, "store": store}
    norms = []
    with thalweg.watch(model, opt, **options) as run:
        for _ in range(45):
            loss = loss_fn(model, (x, y))
            loss.backward()
            norms.append(nn.utils.get_total_norm([p.grad for p in net.parameters()]))
            run.log(loss=loss, batch=(x, y))
            opt.step()
            opt.zero_grad()
    assert run.step == 45 and bool(run.id) == (rank == 0)
    full = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in net.parameters()]
    return run, [float(getattr(norm, "full_tensor", lambda norm=norm: norm)()) for norm in norms], full

run, *replicated = train(nn.parallel.DistributedDataParallel, f"{folder}/s")
assert not run.disabled, run.disabled
assert rank == 1 or all(one.runs >= 2 - one.idle for one in run.budget.accounts.values())
run, *spread = train(fully_shard, f"{folder}/t")
torch.save((replicated, spread, run.disabled, run.left_out()), f"{folder}/{rank}")
leave()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes found, first under DDP and then under FSDP2."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-c", WORKER]
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [subprocess.Popen([*command, str(rank), str(folder)], env=place) for rank in (0, 1)]
    assert [one.wait(800) for one in workers] == [0, 0]
    return folder, *(torch.load(folder / str(rank)) for rank in (0, 1))


def test_under_ddp_rank_zero_reads_the_reduced_gradients_alone_and_the_other_waits_for_nothing(trained):
    folder, (first, *_), (second, *_) = trained
    (norms, weights), (others, same) = first, second
    assert norms == others
    for one, other in zip(weights, same, strict=True):
        assert torch.equal(one, other)
    with RunStore(folder / "s") as store:
        (info,) = store.runs()
        found = store.readings(1, "gradient norm")
    assert info.steps == 45
    assert set(found[0].layers) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    for one in found:
        assert one.value == pytest.approx(norms[one.step - 1], rel=1e-5)


def test_a_sharded_model_is_left_alone_by_the_one_process_that_looks_and_that_is_said(trained):
    folder, (replicated, spread, disabled, left_out), (_, same, none, _) = trained
    # Batch statistics differ by process, so the two ways to average agree up to rounding.
    assert spread[0] == pytest.approx(replicated[0], rel=1e-3)
    for one, other in zip(spread[1], same[1], strict=True):
        assert torch.equal(one, other)
    assert {"gradient norm", "weight norm", "sharpness", "dormant units", "accuracy"} <= set(disabled)
    assert none == {}
    assert left_out["sharpness"] == "switched off: the model is sharded, and only one process looks"
    with RunStore(folder / "t") as store:
        assert set(store.names(1)) >= {"loss", "softmax collapse"}
        assert len(store.readings(1, "loss")) == 45


def test_another_rank_counts_steps_and_does_nothing_else(small, tmp_path):
    said = []
    with thalweg.watch(
        small.model, small.opt, rank=1, store=tmp_path / "s", on_finding=said.append, resume=True, name="job"
    ) as run:
        run.log(loss=float("nan"), batch=small.whole)
        small.train(5, run)
        assert not small.model._forward_hooks
    assert (run.step, run.id, run.findings, said) == (5, 0, [], [])
    assert run.left_out() == {} and not (tmp_path / "s").exists()


def test_a_run_of_one_process_has_rank_zero(tmp_path):
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with thalweg.watch(None, opt, store=tmp_path / "s", budget=0) as run:
        opt.step()
    assert run.id == 1
