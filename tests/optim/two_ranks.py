"""What each of two gloo processes does for test_distributed.py: train every recipe, and report what it got.

Rank 0 writes its findings to the file named first on the command line.
"""

import copy
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from toys import RECIPES, batch, make, net

from gloo_pair import join, leave
from thalweg import optim

STEPS = range(9)
CHAINS = {
    "clip_norm": lambda params, **k: optim.Descent(
        params, optim.clip_norm(0.05), optim.momentum(0.9), lr=0.1, **k
    ),
    "clip_behind": lambda params, **k: optim.Descent(
        params, optim.orthogonal(), optim.adam(), optim.clip_norm(0.5), lr=0.1, **k
    ),
}
OPTIMIZERS = {name: lambda params, n=name, **k: make(n, params, **k) for name in RECIPES} | CHAINS
# What needs whole matrices; the rest works on shards.
WHOLE = {"GaLore", "QGaLore", "Fira", "FRUGAL", "GradNormLoRP"}


def sharded(seed=3):
    """The toy net in shards: of 5 rows, 3 are on one rank and 2 on the other; a number is on one of them."""
    return fully_shard(with_a_number(net(torch.float64, seed)))


def with_a_number(model):
    """The toy net and a scale of one element behind it."""
    return nn.Sequential(*model, Scale())


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.full((1,), 1.5, dtype=torch.float64))

    def forward(self, x):
        return self.factor * x


def half(step):
    """This rank's half of a batch of 8."""
    inputs, classes = batch(step, 8, torch.float64)
    mine = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    return inputs[mine], classes[mine]


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        inputs, classes = half(step)
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
    return [full(p) for p in model.parameters()]


def full(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def report(name):
    """Weights under DDP, under FSDP2, and resumed from three kinds of checkpoint; where the state lies.

    What needs whole matrices is refused under FSDP2, and resumed under DDP.
    """
    build = OPTIMIZERS[name]
    model = with_a_number(net(torch.float64))
    found = {"ddp": train(DistributedDataParallel(model), build(model.parameters()), STEPS)}
    if name in WHOLE:
        model = sharded()
        before = [full(p) for p in model.parameters()]
        try:
            train(model, build(model.parameters()), STEPS[:1])
        except ValueError as error:
            found["refusal"] = str(error), all(map(torch.equal, before, map(full, model.parameters())))
        found["resumed"] = resumed(build, lambda: DistributedDataParallel(with_a_number(net(torch.float64))))
        return found

    model = sharded()
    optimizer = build(model.parameters())
    found["fsdp"] = train(model, optimizer, STEPS)
    slots = [v for entry in optimizer.state.values() for key, v in entry.items() if key != "step"]
    found["state"] = {type(slot).__name__ for slot in slots}
    found["placed alike"] = all(
        slot.placements == p.placements and slot.to_local().shape == p.to_local().shape
        for p, entry in optimizer.state.items()
        for key, slot in entry.items()
        if key != "step"
    )
    found["rows"] = model[0].weight.to_local().shape[0]

    found["resumed"] = resumed(build, sharded)
    return found


def resumed(build, make_model):
    """The weights after nine steps, with a checkpoint of each of three kinds behind the fifth."""
    found = []
    for options in (
        StateDictOptions(),
        StateDictOptions(full_state_dict=True),
        StateDictOptions(flatten_optimizer_state_dict=True),
    ):
        model = make_model()
        optimizer = build(model.parameters())
        train(model, optimizer, STEPS[:5])
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        optimizer.zero_grad()  # with gradients around, torch would not make state to load into
        fresh = build(model.parameters())
        set_optimizer_state_dict(model, fresh, saved, options=options)
        found.append(train(model, fresh, STEPS[5:]))
    return found


def stochastic(shard):
    """bfloat16 weights after 20 stochastically rounded steps with the same gradient everywhere."""
    layer = nn.Linear(6, 5, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 30).view(5, 6))
    if shard:
        fully_shard(layer)
    optimizer = optim.AdamW(layer.parameters(), lr=1e-3, rounding="stochastic")
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.eye(6, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    return full(layer.weight)


def refusal():
    """The error of a matrix method on a shard, and whether the weights stayed."""
    model = nn.Linear(6, 5, bias=False)
    fully_shard(model)
    before = full(model.weight)
    transpose = optim.matrix(lambda u, p, state, k: (u.t().t(), state))
    optimizer = optim.Descent(model.parameters(), transpose)
    model(torch.ones(1, 6)).sum().backward()
    try:
        optimizer.step()
    except ValueError as error:
        return str(error), torch.equal(full(model.weight), before)
    return "", False


def main(path):
    join()
    init_device_mesh("cpu", (2,))
    findings = {name: report(name) for name in OPTIMIZERS}
    findings["refusal"] = refusal()
    findings["stochastic"] = stochastic(False), stochastic(True)
    rows = [None, None]
    dist.all_gather_object(rows, [findings[name]["rows"] for name in OPTIMIZERS if name not in WHOLE])
    findings["rows"] = rows
    if dist.get_rank() == 0:
        torch.save(findings, path)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
