"""Many tensors through one kernel: the same numbers as one by one, found by watching one call."""

import pytest
import torch
from torch import nn
from toys import RECIPES

from thalweg import optim
from thalweg.optim._fleet import CHUNK
from thalweg.optim._machine_code import Watch

ELEMENTWISE = (
    "AMSGrad",
    "AdEMAMix",
    "AdamW",
    "DiffGrad",
    "Grams",
    "Grokfast",
    "Lion",
    "RAdam",
    "SGD",
    "SPAM",
)
# More than one chunk, less than a vector, one, an empty one, a matrix, one in another order of memory.
SHAPES = ((CHUNK + 5,), (3,), (1,), (0, 4), (33, 65), (7, 8, 3, 3), (2 * CHUNK,))


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    made[5].data = made[5].data.contiguous(memory_format=torch.channels_last)
    return made


def walk(optimizer, steps=3):
    generator = torch.Generator().manual_seed(1)
    params = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


def fleets(optimizer):
    return [line.fleet for line in optimizer._lines.values()]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_element_wise_recipe_has_machine_code_and_takes_the_eager_steps(name):
    fast, plain = (RECIPES[name](parameters(), compile=compile) for compile in (True, False))
    for ours, theirs in zip(walk(fast), walk(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (fleet,) = fleets(fast)
    assert list(fleet.codes) and None not in fleet.codes.values()


@pytest.mark.parametrize("rounding", ["none", "stochastic", "kahan"])
@pytest.mark.parametrize("chain", [(optim.adam(),), (optim.clip_norm(1.0), optim.adam())], ids=["one", "two"])
def test_one_by_one_and_together_are_bit_for_bit_the_same(rounding, chain, monkeypatch):
    def steps():
        optimizer = optim.Descent(parameters(torch.bfloat16), *chain, rounding=rounding, compile=True)
        return walk(optimizer), fleets(optimizer)

    together, used = steps()
    assert all(fleet.codes and None not in fleet.codes.values() for fleet in used)
    monkeypatch.setattr("thalweg.optim._fleet.Fleet.run", lambda self, items: False)
    alone, _ = steps()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


def test_without_machine_code_the_wrapper_is_called(monkeypatch):
    monkeypatch.setattr(Watch, "code", lambda self, arguments, length: None)
    monkeypatch.setattr("thalweg.optim._kernel._compiled", {})
    optimizer = optim.AdamW(parameters(), compile=True)
    ours = walk(optimizer)
    assert all(set(fleet.codes.values()) == {None} for fleet in fleets(optimizer))
    for one, other in zip(ours, walk(optim.AdamW(parameters(), compile=False)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_state_that_has_moved_is_found_again():
    optimizer, twin = (optim.AdamW(parameters(), compile=True) for _ in range(2))
    walk(optimizer), walk(twin)
    for p in optimizer.param_groups[0]["params"]:
        p.data = p.data.clone(memory_format=torch.preserve_format)
        optimizer.state[p]["adam.mean"] = optimizer.state[p]["adam.mean"].clone()
    for ours, theirs in zip(walk(optimizer), walk(twin), strict=True):
        assert torch.equal(ours, theirs)
