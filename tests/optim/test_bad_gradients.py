"""Gradients and parameters that a step cannot use: refused or skipped as a whole, never half."""

import pytest
import torch
from torch import nn
from toys import RECIPES, equal, every_recipe, make, net, same_state, state_of, train, weights

from thalweg import optim


def poisoned(value, nonfinite, name="AdamW"):
    """A net after three good steps, and a bad entry in the gradient of its second parameter."""
    model = net()
    optimizer = make(name, model.parameters(), nonfinite=nonfinite)
    train(model, optimizer, range(3))
    list(model.parameters())[1].grad[2] = value
    return model, optimizer


@every_recipe
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_skip_leaves_everything_as_it_was_and_counts(name, value):
    model, optimizer = poisoned(value, "skip", name)
    before, state = weights(model), state_of(optimizer)
    optimizer.step()
    assert equal(before, weights(model))
    assert same_state(state, state_of(optimizer))
    assert optimizer.skipped_steps == 1


@every_recipe
def test_raise_names_the_parameter_and_moves_nothing(name):
    model, optimizer = poisoned(float("nan"), "raise", name)
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"parameter 1 of group 0, of shape \(5,\), has NaN"):
        optimizer.step()
    assert equal(before, weights(model))


def test_step_is_the_default_and_does_as_torch_does():
    model, optimizer = poisoned(float("nan"), "step")
    optimizer.step()
    bias = list(model.parameters())[1]
    assert bias[2].isnan() and bias.isnan().sum() == 1


def test_an_unknown_answer_is_refused():
    with pytest.raises(ValueError, match="nonfinite must be one of raise, skip, step; got 'ignore'"):
        optim.AdamW(net().parameters(), nonfinite="ignore")


@every_recipe
def test_zero_gradients_give_finite_weights(name):
    model = net()
    optimizer = make(name, model.parameters())
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_parameter_that_changed_its_shape_is_refused_before_anything_moves(name):
    model = net()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(2))
    last = list(model.parameters())[-1]
    last.grad = None
    last.data = torch.randn(4)
    last.grad = torch.randn(4)
    before = weights(model)
    if not state_of(optimizer):
        return
    with pytest.raises(ValueError, match=r"of shape \(4,\) had shape \(3,\) when its state was made"):
        optimizer.step()
    assert equal(before, weights(model))


@pytest.mark.parametrize("name", ["GaLore", "Fira", "GradNormLoRP"])
def test_a_rank_that_no_longer_fits_the_state_is_refused_before_anything_moves(name):
    p, q = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(16, 8))
    optimizer = optim.list_recipes()[name]([p, q], rank=2, every=3)
    for step in range(5):
        p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
        if step == 2:
            before = p.detach().clone(), q.detach().clone(), state_of(optimizer)
            optimizer.param_groups[0]["rank"] = 3
            with pytest.raises(ValueError, match=r"made for .*rank': 2.* rank 3: make a new optimizer"):
                optimizer.step()
            assert equal(before[:2], [p, q]) and same_state(before[2], state_of(optimizer))
            optimizer.param_groups[0]["rank"] = 2
        optimizer.step()


def test_stochastic_rounding_of_float16_is_refused():
    half = nn.Parameter(torch.ones(3, dtype=torch.float16))
    with pytest.raises(ValueError, match="rounding='stochastic' is for bfloat16, got a float16 tensor"):
        optim.AdamW([half], rounding="stochastic")


def test_an_empty_group_is_stepped_over():
    model = net()
    optimizer = optim.AdamW([{"params": []}, {"params": model.parameters()}])
    before = weights(model)
    train(model, optimizer, range(1))
    assert not equal(before, weights(model))


def test_a_parameter_of_no_elements_is_stepped_over():
    p = nn.Parameter(torch.zeros(0, 3))
    p.grad = torch.zeros(0, 3)
    optim.AdamW([p]).step()
    assert p.shape == (0, 3)
