from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from thalweg.nn import WeightCompander, convert
from thalweg.tasks import CNN, GPT, MLP

LAYERS = {nn.Linear: WeightCompander.of, nn.Conv2d: WeightCompander.of}


def test_weight_and_chain_rule_are_the_closed_forms():
    scale, width = 0.4, 0.7
    compander = WeightCompander(scale, width).double()
    v = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    w = compander(v)
    (slope,) = torch.autograd.grad(w.sum(), v)
    for point, value, found in zip(v.tolist(), w.tolist(), slope.tolist(), strict=True):
        # The buffers were float32 before they were double.
        assert value == pytest.approx(scale * math.atan2(point, width), rel=1e-6)
        assert found == pytest.approx(scale * width / (width**2 + point**2), rel=1e-6)


def test_no_weight_is_beyond_the_bound_whatever_is_trained():
    v = torch.tensor([-1e30, -50.0, 0.0, 3.0, 1e30])
    w = WeightCompander(0.3, 0.1)(v)
    assert w.abs().max() <= 0.3 * math.pi / 2 * (1 + 1e-6)
    assert w[2] == 0 and torch.equal(w.sort().values, w)


def test_a_converted_model_computes_what_it_did_and_trains_what_the_chain_rule_says():
    model = CNN(width=4, seed=0).eval()
    made = convert(model, LAYERS)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made(x), model(x), atol=1e-5)
    model(x).square().sum().backward()
    made(x).square().sum().backward()
    plain, companded = model[0], made[0]
    v = companded.parametrizations.weight.original
    gain = 0.3 * 0.3 / (0.3**2 + v.detach() ** 2)
    assert torch.allclose(v.grad, plain.weight.grad * gain, atol=1e-4, rtol=1e-3)
    assert not hasattr(made[1], "parametrizations")  # a norm's weight stays


def test_learned_scale_and_width_have_the_gradients_of_the_formula():
    compander = WeightCompander(0.5, 0.2, learned=True).double()
    v = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def function(v, log_scale, log_width):
        return torch.func.functional_call(compander, {"log_scale": log_scale, "log_width": log_width}, (v,))

    assert torch.autograd.gradcheck(function, (v, *compander.parameters()))
    assert len(list(WeightCompander().parameters())) == 0


def test_training_keeps_the_bound_and_folding_keeps_the_outputs():
    model = convert(MLP((4, 8, 3), seed=0), {nn.Linear: lambda layer: WeightCompander.of(layer, 0.4)})
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        (model(x) - 10 * x[:, :3]).square().mean().backward()
        optimizer.step()
    assert 0.35 < model[0].weight.abs().max() < 0.4 * math.pi / 2
    folded = convert(model, {nn.Linear: WeightCompander.fold})
    assert set(folded.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(folded(x), model(x))
    # Plain in every respect, so that it can be pickled and other tools know the layer again.
    assert [type(layer) for layer in folded] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x), folded(x))
    again = convert(folded, {nn.Linear: lambda layer: WeightCompander.of(layer, 1)})
    assert torch.allclose(again(x), folded(x), atol=1e-5)
    assert parametrize.is_parametrized(model[0], "weight")
    folded(x).sum().backward()
    assert folded[0].weight.grad is not None
    plain = nn.Linear(2, 2)
    assert WeightCompander.fold(plain) is plain


def test_plain_weights_can_be_assigned_and_state_dicts_go_round():
    layer = WeightCompander.of(nn.Linear(50, 40), scale=0.3)
    wanted = torch.empty(40, 50).uniform_(-0.46, 0.46, generator=torch.Generator().manual_seed(0))
    layer.weight = wanted
    assert torch.allclose(layer.weight, wanted, atol=1e-6)
    other = WeightCompander.of(nn.Linear(50, 40), scale=0.9)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)  # the scale is part of it


def test_half_precision_is_the_float32_result_rounded():
    v = torch.linspace(-30, 30, 101)
    compander = WeightCompander(0.3)
    for dtype in (torch.float16, torch.bfloat16):
        half = v.to(dtype)
        assert torch.equal(compander(half), compander(half.float()).to(dtype))


def test_tied_weights_are_refused_and_left_alone():
    model = GPT(11, 4, layers=1, heads=1, width=8, seed=0, tied=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"module 'head' .* shares a parameter"):
        convert(model, {nn.Linear: WeightCompander.of})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    made = convert(model, {nn.Linear: WeightCompander.of}, skip=["head"])
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.allclose(made(tokens), model(tokens), atol=1e-6)


def test_weight_compander_refuses():
    for argument in ("scale", "width"):
        with pytest.raises(ValueError, match=rf"{argument} must be in \(0, inf\), got 0"):
            WeightCompander(**{argument: 0})
    with pytest.raises(ValueError, match=r"layer must be one of Linear, Conv1d, .* got Embedding"):
        WeightCompander.of(nn.Embedding(3, 2))
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, 0.9)
    with pytest.raises(ValueError, match=r"scale must be above 0\.579 to hold weights up to 0\.9, got 0\.3"):
        WeightCompander.of(layer)
    assert not parametrize.is_parametrized(layer) and (layer.weight == 0.9).all()
    other = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer must have a plain weight, got a parametrized one"):
        WeightCompander.of(other, 5)
    with pytest.raises(ValueError, match="layer must hold numbers, got a weight on the meta device"):
        WeightCompander.of(nn.Linear(2, 2, device="meta"))
    twice = nn.utils.parametrizations.weight_norm(WeightCompander.of(nn.Linear(2, 2), 5))
    with pytest.raises(ValueError, match="no other parametrization"):
        WeightCompander.fold(twice)
