"""A closure clears the gradients: what it adds to older ones is refused, and nothing else is."""

import math

import pytest
import torch
from toys import equal, loss_of, net, weights
from wrapped import MAKERS, run

CLEARED = ["SAM around SGD", "forward around AdamW", "backward around torch SGD", "XGrad adamw"]
every_cleared = pytest.mark.parametrize("name", CLEARED)


@every_cleared
def test_a_closure_that_adds_to_older_gradients_is_refused_and_moves_nothing(name):
    model = net()
    optimizer = MAKERS[name](model.parameters())
    run(model, optimizer, range(3))
    before, grads = weights(model), [p.grad.clone() for p in model.parameters()]

    def adding():
        loss = loss_of(model, 3)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    with pytest.raises(RuntimeError, match=r"^the closure of \w+\.step\(\) must clear the gradients, but it"):
        optimizer.step(adding)
    assert equal(weights(model), before)
    smallest = min(range(4), key=lambda i: grads[i].numel())
    assert torch.equal(list(model.parameters())[smallest].grad, grads[smallest])


@every_cleared
def test_gradients_cleared_in_place_do_as_well(name):
    paths = []
    for to_none in (True, False):
        model = net()
        optimizer = MAKERS[name](model.parameters())
        for step in range(4):

            def closure(step=step, model=model, optimizer=optimizer, to_none=to_none):
                optimizer.zero_grad(set_to_none=to_none)
                loss = loss_of(model, step)
                loss.backward()
                return loss

            optimizer.step(closure)
        paths.append(weights(model))
    assert equal(*paths)


@every_cleared
def test_gradients_that_are_not_numbers_are_no_older_ones(name):
    model = net()
    optimizer = MAKERS[name](model.parameters())
    run(model, optimizer, range(1))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 1) * math.nan
        loss.backward()
        return loss

    assert optimizer.step(closure).isnan()
    assert all(p.isnan().all() for p in model.parameters())
