"""LayerNormGRU against the paper's formulas unit by unit, and what layer normalisation leaves unchanged."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.nn import LayerNormGRU

torch.manual_seed(0)
X = torch.randn(2, 3, 4, dtype=torch.float64)


def unit():
    torch.manual_seed(1)
    made = LayerNormGRU(4, 5).double()
    for p in made.parameters():
        if p.dim() == 1:
            p.data.uniform_(-1, 1)
    return made


def normalised(values, norm):
    """One vector as a list: mean and biased variance, then gain and offset."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    gains, offsets = norm.weight.tolist(), norm.bias.tolist()
    scaled = [(v - mean) / math.sqrt(variance + 1e-5) for v in values]
    return [g * v + b for g, v, b in zip(gains, scaled, offsets, strict=True)]


def times(matrix, vector):
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in matrix.tolist()]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_states_are_the_formulas_unit_by_unit():
    made = unit()
    states, last = made(X)
    for example in range(2):
        state = [0.0] * 5
        for step in range(3):
            x = X[example, step].tolist()
            gates_x = normalised(times(made.input_weight[:10], x), made.input_gates)
            gates_h = normalised(times(made.hidden_weight[:10], state), made.hidden_gates)
            gates = [sigmoid(a + b) for a, b in zip(gates_x, gates_h, strict=True)]
            own = normalised(times(made.hidden_weight[10:], state), made.hidden_candidate)
            candidate = normalised(times(made.input_weight[10:], x), made.input_candidate)
            for i in range(5):
                reset, update = gates[i], gates[5 + i]
                fresh = math.tanh(candidate[i] + reset * own[i])
                state[i] = (1 - update) * fresh + update * state[i]
            assert states[example, step].tolist() == pytest.approx(state, rel=1e-10)
        assert last[example].tolist() == pytest.approx(state, rel=1e-10)


def test_gradients_equal_finite_differences_and_the_first_state_is_one_of_zeros():
    made = unit()
    state = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, s: made(a, s)[0], (x, state))
    assert torch.equal(made(X)[1], made(X, torch.zeros(2, 5).double())[1])
    first, second = made(X[:, :2]), made(X[:, 2:], made(X[:, :2])[1])
    assert torch.allclose(torch.cat([first[0], second[0]], 1), made(X)[0])


def test_scaling_all_weights_of_a_layer_or_shifting_them_together_changes_nothing():
    """The paper's table of invariances, up to the eps of 1e-5 beside variances of order one."""
    made = unit()
    for module in made.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12
    before = made(X)[0]
    with torch.no_grad():
        for weight in (made.input_weight, made.hidden_weight):
            for rows in (slice(0, 10), slice(10, 15)):
                weight[rows] = 3 * weight[rows] + torch.randn(weight.shape[1]).double()
    assert torch.allclose(made(X)[0], before, atol=1e-6)
    with torch.no_grad():
        made.input_weight[0] *= 3  # one unit alone does change it
    assert not torch.allclose(made(X)[0], before, atol=1e-3)


def layer_and_batch():
    """The same linear layer before both normalisations, without their eps."""
    torch.manual_seed(2)
    linear = nn.Linear(4, 6).double()
    return linear, nn.LayerNorm(6, eps=1e-12).double(), nn.BatchNorm1d(6, eps=1e-12).double()


@pytest.mark.parametrize(
    ("change", "layer_same", "batch_same"),
    [
        (lambda w, b, x: (3 * w, 3 * b, x), True, True),
        (lambda w, b, x: (w + torch.arange(4.0), b, x), True, False),
        (lambda w, b, x: (w * torch.arange(1.0, 7).view(6, 1), b * torch.arange(1.0, 7), x), False, True),
        (lambda w, b, x: (w, b, x + torch.arange(4.0)), False, True),
        (lambda w, b, x: (w, 0 * b, x * torch.arange(1.0, 6).view(5, 1)), True, False),
    ],
    ids=["all weights scaled", "all shifted", "one unit scaled", "data shifted", "one example scaled"],
)
def test_invariances_of_layer_and_batch_normalisation_are_the_papers_table(change, layer_same, batch_same):
    linear, layer, batch = layer_and_batch()
    x = torch.randn(5, 4, dtype=torch.float64)
    w, b = linear.weight.detach(), 0 * linear.bias.detach()
    new_w, new_b, new_x = change(w, b, x)
    before, after = x @ w.T + b, new_x @ new_w.double().T + new_b
    assert torch.allclose(layer(before), layer(after), atol=1e-8) is layer_same
    assert torch.allclose(batch(before), batch(after), atol=1e-8) is batch_same


def test_a_large_mean_does_not_cancel():
    made = unit().float()
    with torch.no_grad():
        made.input_weight += 1e4
    x = X.float()
    exact = unit()
    with torch.no_grad():
        exact.input_weight.copy_(made.input_weight)
    assert torch.allclose(made(x)[0].double(), exact(X)[0], atol=0.02)


def test_refusals():
    made = LayerNormGRU(4, 5)
    with pytest.raises(ValueError, match=r"input must have shape \(n, steps, 4\), got \(2, 3, 5\)"):
        made(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 5\), got \(5,\)"):
        made(torch.zeros(2, 3, 4), torch.zeros(5))
    with pytest.raises(ValueError, match="hidden_size must be an integer >= 2, got 1"):
        LayerNormGRU(4, 1)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_products_are_in_half_precision_and_all_else_in_the_type_of_the_weights(half):
    made, x = unit().float(), X.float()
    exact = made(x)[0]
    with torch.autocast("cpu", dtype=half):
        states, last = made(x)
        again, _ = made(x[:, 1:].to(half), made(x[:, :1].to(half))[1])  # as a layer before it would give
        given, _ = made(x, torch.zeros(2, 5, dtype=half))
    assert states.dtype == last.dtype == again.dtype == given.dtype == torch.float32
    for found in (states, given, torch.cat([states[:, :1], again], 1)):
        assert torch.allclose(found, exact, atol=0.05)
    states.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_types_that_do_not_fit_are_refused():
    made, x = LayerNormGRU(4, 5), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"input must be torch.float32 like the weights, got torch.float64"):
        made(x.double())
    with pytest.raises(ValueError, match=r"state must be torch.float32 like the weights, got torch.float16"):
        made(x, torch.zeros(2, 5).half())
    with pytest.raises(ValueError, match=r"state must be a tensor, got tuple"):
        made(x, (torch.zeros(2, 5),))


def test_what_is_made_anew_has_weights_in_range_and_norms_at_their_start():
    with torch.device("meta"):
        made = LayerNormGRU(4, 5)
    made.to_empty(device="cpu")
    for p in made.parameters():
        nn.init.constant_(p, torch.nan)
    for module in made.modules():
        module.reset_parameters()
    assert made.input_weight.abs().max() <= 5**-0.5 and made.hidden_weight.std() > 0.1
    assert (made.input_gates.weight == 1).all() and (made.hidden_candidate.bias == 0).all()
