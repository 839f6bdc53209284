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
    ggn_operator,
    hutchinson,
    hvp_operator,
    spectral_density,
    top_eigenpairs,
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


def main(path):
    join()
    model, inputs, targets = problem()
    half = slice(8) if dist.get_rank() == 0 else slice(8, 16)
    parallel = DistributedDataParallel(model)
    found = readings(parallel, inputs[half], targets[half], averaged_over_ranks)
    gram = curvature_gram(parallel, cross_entropy, inputs[:4], targets[:4])
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
