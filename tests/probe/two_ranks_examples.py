"""What each of two gloo processes does for test_two_ranks_examples.py: probe its part of one batch.

Rank 0 writes what both found to the file named first on the command line.
"""

import sys

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from gloo_pair import join, leave
from thalweg import probe
from thalweg.tasks import GPT

CUT = 5  # of 8 examples; the ranks hold different numbers


def batch():
    return torch.randint(7, (8, 6), generator=torch.Generator().manual_seed(0))


def model():
    return GPT(7, 6, layers=1, heads=2, width=8, seed=0, tied=True).double()


def loss_fn(model, tokens):
    return functional.cross_entropy(model(tokens).mT, tokens.roll(-1, 1), reduction="none").mean(1)


def readings(model, tokens, rising, falling):
    norms = probe.example_gradient_norms(model, tokens, loss_fn)
    alignment = probe.example_alignment(model, tokens, loss_fn)
    noise = probe.gradient_noise_scale(model, tokens, loss_fn)
    weights = probe.gradient_signal_to_noise(model, tokens, loss_fn)
    return {
        "losses": probe.example_losses(model, tokens, loss_fn),
        "norms": norms.norms,
        "per layer": norms.per_layer,
        "cosines": alignment.cosines,
        "dots": alignment.per_layer,
        "coherence": vars(probe.gradient_coherence(model, tokens, loss_fn)),
        "chunked": vars(probe.gradient_coherence(model, tokens, loss_fn, chunk_size=2)),
        "noise": (noise.simple, noise.signal, noise.per_layer),
        # Softmax does not see the keys' biases: their gradients are rounding, and so would be the ratios.
        "signal to noise": {
            name: torch.where(weights.variance[name] > 1e-25, ratio, 0)
            for name, ratio in weights.ratio.items()
        },
        "opposing": vars(probe.opposing_gradients(model, tokens, loss_fn, rising, falling)),
    }


def main(path):
    join()
    rank = dist.get_rank()
    mine = batch()[:CUT] if rank == 0 else batch()[CUT:]
    # Example 6, the falling group, is the second of rank 1; rank 0 has nothing to name.
    groups = ([1, 3], []) if rank == 0 else ([2], [1])
    wrapped = DistributedDataParallel(model())
    found = [None, None]
    dist.all_gather_object(found, readings(wrapped, mine, *groups))
    if rank == 0:
        torch.save(found, path)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
