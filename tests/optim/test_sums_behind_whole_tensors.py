"""A link that needs sums behind one that gets its tensor whole: the chain is the two, one after the other."""

import pytest
import torch
from torch import nn

from thalweg import optim

WHOLE = {
    "windowed_component": lambda: optim.windowed_component(3),
    "norm_growth_limit": lambda: optim.norm_growth_limit(),
    "quantized": lambda: optim.quantized(optim.adam(), smallest=0),
    "project": lambda: optim.project(2, 3),
    "project, RAdam": lambda: optim.project(2, 3, optim.rectified_adam()),
    "split": lambda: optim.split("columns", 0.5, 3),
    "split, RAdam": lambda: optim.split("columns", 0.5, 3, optim.rectified_adam()),
}
SUMMING = {
    "clip_norm": lambda: optim.clip_norm(0.5),
    "clip_value": lambda: optim.clip_value(0.1),
    "orthogonal": lambda: optim.orthogonal(),
    "centralize": lambda: optim.centralize(),
    "adaptive_clip": lambda: optim.adaptive_clip(0.05),
    "lion, l2": lambda: optim.lion(kappa="l2"),
    "clip_spikes": lambda: optim.clip_spikes(2.0, grace=0),
}
STEPS = 8


def parameters():
    source = torch.Generator().manual_seed(0)
    shapes = [(6, 9), (9,), (8, 4)]
    return [nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64)) for shape in shapes]


def gradients(step):
    source = torch.Generator().manual_seed(step + 1)
    return [torch.randn(p.shape, generator=source, dtype=torch.float64) for p in parameters()]


def updates(optimizer, params, grads, at):
    """What ``optimizer`` makes of ``grads`` at the weights ``at``: with a learning rate of 1, to rounding."""
    with torch.no_grad():
        for p, value, g in zip(params, at, grads, strict=True):
            p.copy_(value)
            p.grad = g.clone()
    optimizer.step()
    return [value - p.detach() for value, p in zip(at, params, strict=True)]


@pytest.mark.parametrize("then", SUMMING)
@pytest.mark.parametrize("first", WHOLE)
def test_the_chain_is_the_two_one_after_the_other(first, then):
    chained = parameters()
    together = optim.Descent(chained, WHOLE[first](), SUMMING[then](), lr=0.1, compile=False)
    apart, reference = parameters(), parameters()
    one = optim.Descent(apart, WHOLE[first](), lr=1.0, compile=False)
    two = optim.Descent(reference, SUMMING[then](), lr=0.1, compile=False)
    for step in range(STEPS):
        grads = gradients(step)
        for p, g in zip(chained, grads, strict=True):
            p.grad = g.clone()
        together.step()
        found = updates(one, apart, grads, [p.detach().clone() for p in reference])
        for p, u in zip(reference, found, strict=True):
            p.grad = u
        two.step()
        for p, q in zip(chained, reference, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("first", ["windowed_component", "quantized", "project"])
def test_compiled_it_is_the_same(first, compiler):
    ends = []
    for compile in (False, True):
        params = parameters()
        chain = WHOLE[first](), optim.clip_norm(0.5), optim.tangent(weight_decay=0.1), optim.decay(0.1)
        optimizer = optim.Descent(params, *chain, lr=0.1, compile=compile)
        for step in range(STEPS):
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = g
            optimizer.step()
        ends.append(params)
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda inner: optim.project(2, 3, inner), lambda inner: optim.split(inner=inner)]
)
@pytest.mark.parametrize("inner", [lambda: optim.decay(0.1), lambda: optim.rectified_adam(weight_decay=0.1)])
def test_weights_are_not_decayed_inside_a_subspace(make, inner):
    with pytest.raises(
        ValueError, match=r"inner must not decay weights inside a subspace.*put decay\(\) behind"
    ):
        make(inner())
