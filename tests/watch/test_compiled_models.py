"""Watching a compiled model: no graph breaks, no recompilations, no other numbers."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch._dynamo as dynamo
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import thalweg

STEPS = 45
# Every graph is captured as for the default backend, without the minutes that a C++ compiler takes.
BACKEND = {"backend": "aot_eager", "fullgraph": True}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.act, self.drop, self.last = nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.drop(self.act(self.norm(self.first(x)))))


def outside(net):
    """The compiled wrapper is watched."""
    compiled = torch.compile(net, **BACKEND)
    return compiled, compiled


def inside(net):
    """The model itself is watched, and trained through a wrapper."""
    return torch.compile(net, **BACKEND), net


def in_place(net):
    net.compile(**BACKEND)
    return net, net


def in_a_function(net):
    return torch.compile(lambda x: net(x), **BACKEND), net


def train(way, watched, mend=None):
    """The run, what dynamo counted, and everything that watching could have touched."""
    dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    net = Net()
    model, seen = way(net)
    x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    options = {"loss_fn": loss_fn, "evaluate": ((x, y), (x, y)), "budget": 1e9, "store": None}
    run = thalweg.watch(seen, opt, **options) if watched else None
    for step in range(STEPS):
        batch = x[:32], y[:32]
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if run:
            run.log(loss=loss, batch=batch)
        opt.step()
        opt.zero_grad()
        if step % 20 == 19:  # evaluation by the loop itself
            net.eval()
            with torch.no_grad():
                model(x)
            net.train()
    counted = {
        "graphs": counters["stats"]["unique_graphs"],
        "calls": counters["stats"]["calls_captured"],
        "breaks": sum(counters["graph_break"].values()),
        "recompilations": sum(counters["recompile_limit"].values()),
    }
    if run:
        run.close()
    return run, counted, [*net.state_dict().values(), torch.get_rng_state()]


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("way", [outside, inside, in_place, in_a_function])
def test_every_sensor_reads_and_dynamo_compiles_what_it_would_compile_anyway(way):
    _, plain, before = train(way, watched=False)
    run, counted, after = train(way, watched=True)
    assert plain["graphs"] >= 2 and counted == plain
    assert run.disabled == {} and all(one.runs >= 2 - one.idle for one in run.budget.accounts.values())
    assert set(run.moment.named) == {name for name, _ in Net().named_parameters()}
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


def test_what_is_heard_inside_a_compiled_region_is_the_training_batch_and_its_logits():
    dynamo.reset()
    net = Net()
    model = torch.compile(net, **BACKEND)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(32, 8)
    run = thalweg.watch(net, opt, store=None, budget=0)
    for _ in range(3):
        out = model(x)
        out.sum().backward()
        run.log(loss=0.0)
        assert run.moment.inputs[0][0] is x and torch.equal(run.moment.output, out)
        assert not run.moment.output.requires_grad
        opt.step()
        assert run.moment.output is None
    net.eval()
    with torch.no_grad():
        model(torch.zeros(5, 8))
    net.train()
    run.log(loss=0.0)
    assert run.moment.inputs[0][0] is x
    run.close()
    model(x)
    assert run._listener.last is None  # a batch and its graph are not kept alive after the end


def test_copies_of_a_model_in_a_compiled_region_are_not_heard():
    dynamo.reset()
    net = Net()
    with thalweg.watch(net, torch.optim.SGD(net.parameters(), lr=0.1), store=None) as run:
        twin = copy.deepcopy(net)
        torch.compile(twin, **BACKEND)(torch.randn(4, 8))
        run.log(loss=0.0)
        assert run.moment.inputs is None


def test_a_compiled_step_is_seen_and_compiled_as_without_watching():
    norms = []
    for watched in (False, True):
        dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        net = Net()
        opt = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.1))
        run = thalweg.watch(net, opt, budget=1e9, store=None) if watched else None
        step = torch.compile(lambda opt=opt: opt.step(), backend="eager")
        for _ in range(5):
            F.cross_entropy(net(torch.randn(4, 8)), torch.arange(4)).backward()
            step()
            opt.zero_grad()
        norms.append((*counters["stats"].items(), sum(p.norm().item() for p in net.parameters())))
        if run:
            assert run.step == 5 and run.budget.accounts["gradient norm"].runs == 4 and not run.disabled
            run.close()
    assert norms[0] == norms[1]


@pytest.mark.parametrize("way", [outside, in_place])
def test_a_script_with_a_compiled_model_is_watched_without_compiling_anything_again(way):
    """As ``thalweg run`` does: its hooks come with the first step, behind the first compilation."""
    counted = []
    for watched in (False, True):
        dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        everything = thalweg.watch.watching_everything(name="script", store=None, budget=1e9)
        with everything if watched else nullcontext() as runs:
            net = Net()
            model, _ = way(net)
            opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
            for _ in range(45):
                F.cross_entropy(model(torch.randn(32, 8)), torch.randint(0, 4, (32,))).backward()
                opt.step()
                opt.zero_grad()
        counted.append((dict(counters["stats"]), dict(counters["graph_break"])))
    assert counted[0] == counted[1] and counted[0][0]["unique_graphs"] == 1
    (run,) = runs
    assert run.step == 45 and not run.disabled
    assert all(run.budget.accounts[name].runs >= 2 for name in ("sharpness", "dormant units"))
