"""What each of two gloo processes does for test_wrappers_distributed.py: train wrapped optimizers, report.

Rank 0 writes its findings to the file named first on the command line.
"""

import copy
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from toys import net
from two_ranks import full, half, sharded, with_a_number
from wrapped import BASES, MAKERS, by_hand

from gloo_pair import join, leave
from thalweg import optim

STEPS = range(7)
# Mode exact sees no averaging over ranks and refuses shards; torch's own checkpoints need some state, which
# its SGD without momentum does not have.
NAMES = [name for name in MAKERS if not name.startswith("exact") and not name.endswith("torch SGD")]
FORMS = {
    "sharded": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}


def train(model, optimizer, steps, batches=half, by="closure"):
    """The weights behind the steps, and then the average, if there is one."""
    for step in steps:
        inputs, classes = batches(step)

        def gradient(inputs=inputs, classes=classes):
            loss = F.cross_entropy(model(inputs), classes)
            loss.backward()
            return loss

        def closure(gradient=gradient):
            optimizer.zero_grad()
            return gradient()

        if by == "closure":
            optimizer.step(closure)
        else:
            by_hand(optimizer, gradient)
            optimizer.step()
    found = [full(p) for p in model.parameters()]
    if isinstance(optimizer, optim.Average):
        with optimizer.averaged():
            found += [full(p) for p in model.parameters()]
    return found


def report(name):
    build = MAKERS[name]
    found = {}
    for by in ("closure", "calls"):
        model = with_a_number(net(torch.float64))
        parallel = DistributedDataParallel(model)
        found[f"ddp, {by}"] = train(parallel, build(model.parameters()), STEPS, by=by)
        model = sharded()
        found[f"fsdp, {by}"] = train(model, build(model.parameters()), STEPS, by=by)
    for form, options in FORMS.items():
        model = sharded()
        optimizer = build(model.parameters())
        train(model, optimizer, STEPS[:4])
        optimizer.zero_grad()
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        fresh = build(model.parameters())
        try:
            set_optimizer_state_dict(model, fresh, saved, options=options)
        except ValueError as error:
            found[form] = str(error)
        else:
            found[form] = train(model, fresh, STEPS[4:])
    return found


def refusal():
    """The error of double backpropagation on shards, and whether the weights stayed."""
    model = sharded()
    before = [full(p) for p in model.parameters()]
    optimizer = optim.GradientRegularization(BASES["AdamW"](model.parameters()), mode="exact")
    inputs, classes = half(0)
    try:
        optimizer.step(lambda: F.cross_entropy(model(inputs), classes))
    except ValueError as error:
        return str(error), all(
            torch.equal(full(p), w) for p, w in zip(model.parameters(), before, strict=True)
        )
    return "", False


def main(path):
    join()
    init_device_mesh("cpu", (2,))
    findings = {name: report(name) for name in NAMES}
    findings["refusal"] = refusal()
    if dist.get_rank() == 0:
        torch.save(findings, path)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
