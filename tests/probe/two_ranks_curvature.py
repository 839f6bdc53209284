"""What each of two gloo processes does for test_ranks.py: probe a model under DDP on its half, report.

Rank 0 writes its findings to the file named on the command line.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import join, leave
from thalweg.probe import (
    averaged_over_ranks,
    curvature_gram,
    gauss_newton_sharpness,
    ggn_operator,
    hutchinson,
    hvp_operator,
    preconditioned_sharpness,
    sharpness,
    spectral_density,
    top_eigenpairs,
    top_subspace,
    xtrace,
)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(16, 5, dtype=torch.float64), torch.randint(3, (16,))


def readings(model, inputs, targets, over=lambda operator: operator):
    """Every probe that sums over the batch, through ``over``."""
    params = list(model.parameters())
    hessian = over(hvp_operator(lambda: cross_entropy(model(inputs), targets), params))
    gauss_newton = over(ggn_operator(lambda: model(inputs), lambda z: cross_entropy(z, targets), params))
    density = spectral_density(hessian, samples=1, iterations=3)
    return {
        "hessian": list(top_eigenpairs(hessian, iterations=6, tol=0).eigenvalues),
        "gauss-newton": list(top_eigenpairs(gauss_newton, top=2, iterations=4, tol=0).eigenvalues),
        "trace": [hutchinson(hessian, 2).trace, xtrace(hessian, 4).trace],
        "density": torch.cat(density.values).tolist(),
    }


def grouped(model, inputs, targets, group=None):
    """The probes that average over a group by themselves."""
    params = list(model.parameters())
    adam = torch.optim.Adam(params)
    for index, p in enumerate(params):
        adam.state[p] = {"step": torch.tensor(1.0), "exp_avg_sq": (1.0 + index) * torch.ones_like(p)}

    def loss():
        return cross_entropy(model(inputs), targets)

    options = {"group": group, "iterations": 40, "tol": 1e-9}
    spanned = top_subspace(loss, params, 3, **options)
    again = top_subspace(loss, params, 3, previous=spanned.vectors, group=group)
    output = gauss_newton_sharpness(
        lambda: model(inputs), lambda z: cross_entropy(z, targets), params, **options
    )
    return {
        "sharpness": list(sharpness(loss, params, top=2, **options).eigenvalues),
        "preconditioned": preconditioned_sharpness(loss, params, adam, **options).top,
        "gauss-newton sharpness": output.top,
        "subspace": [spanned.share, *spanned.eigenvalues, again.overlap],
    }


def failing(model, inputs, targets):
    """What each rank is told where the loss of the first one's half is NaN; none waits for another."""
    spoiled = inputs * (float("nan") if dist.get_rank() == 0 else 1.0)
    params, group = list(model.parameters()), dist.group.WORLD

    def loss():
        return cross_entropy(model(spoiled), targets)

    calls = (
        lambda: sharpness(loss, params, group=group),
        lambda: top_subspace(loss, params, 2, group=group),
        lambda: gauss_newton_sharpness(
            lambda: model(spoiled), lambda z: cross_entropy(z, targets), params, group=group
        ),
    )
    told = []
    for call in calls:
        try:
            call()
        except ValueError as error:
            told.append(str(error))
    return told


def main(path):
    join()
    model, inputs, targets = problem()
    half = slice(8) if dist.get_rank() == 0 else slice(8, 16)
    parallel = DistributedDataParallel(model)
    found = readings(parallel, inputs[half], targets[half], averaged_over_ranks)
    found |= grouped(parallel, inputs[half], targets[half], dist.group.WORLD)
    gram = curvature_gram(parallel, cross_entropy, inputs[:4], targets[:4])
    found["failed"] = failing(parallel, inputs[half], targets[half])
    # Training goes on as if nothing had been asked.
    cross_entropy(parallel(inputs[half]), targets[half]).backward()
    found["gradient"] = torch.cat([p.grad.flatten() for p in model.parameters()]).tolist()
    found["gram"] = gram.blocks.flatten().tolist()
    every = [None, None]
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        torch.save(every, path)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
