from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.probe import effective_learning_rate, scale_dependence, weight_growth
from thalweg.tasks import CNN, GPT, MLP


@pytest.mark.parametrize(("make", "power"), [(torch.optim.SGD, 2), (optim.SGD, 2), (optim.AdamW, 1)])
def test_a_longer_weight_turns_as_a_short_one_does_at_its_effective_rate(make, power):
    """One step each: the invariance itself, and not the formula, is the reference."""
    torch.manual_seed(0)
    w, x = torch.randn(6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    length, lr = 5.0, 1e-3

    def turned(start: torch.Tensor, rate: float) -> float:
        p = nn.Parameter(start.clone())
        (x @ p / p.norm()).sin().sum().backward()
        options = {} if power == 2 else {"weight_decay": 0.0, "eps": 1e-30}
        optimizer = make([p], lr=rate, **options)
        optimizer.step()
        return weight_growth({"p": p}, {"p": start}).rotation["p"]

    unit = w / w.norm()
    long = nn.Parameter(length * unit)
    rate = effective_learning_rate(make([long], lr=lr), {"w": long})["w"]
    assert rate == pytest.approx(lr / length**power)
    assert turned(length * unit, lr) == pytest.approx(turned(unit, rate), rel=1e-2 if power == 2 else 1e-6)


def test_groups_have_rates_of_their_own_and_foreign_weights_are_left_out():
    params = {name: nn.Parameter(torch.full((4,), 2.0)) for name in "abc"}
    groups = [{"params": [params["a"]]}, {"params": [params["b"]], "lr": 0.8}]
    found = effective_learning_rate(torch.optim.SGD(groups, lr=0.4), params)
    assert found == {"a": pytest.approx(0.4 / 16), "b": pytest.approx(0.8 / 16)}
    said = effective_learning_rate(torch.optim.SGD(groups, lr=0.4), params, steps="normalised")
    assert said["a"] == pytest.approx(0.4 / 4)
    zero = nn.Parameter(torch.zeros(2))
    assert effective_learning_rate(torch.optim.SGD([zero], lr=1.0), {"w": zero})["w"] == math.inf


def test_an_unknown_optimizer_must_say_how_it_steps():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r'steps must be "gradient" or "normalised".* with LBFGS'):
        effective_learning_rate(torch.optim.LBFGS([p]), {"p": p})
    with pytest.raises(ValueError, match="must hold a parameter of the optimizer, got none"):
        effective_learning_rate(torch.optim.SGD([p], lr=1.0), {"p": torch.ones(2)})


@pytest.mark.parametrize(
    ("make", "power"),
    [
        (
            lambda ps: optim.Descent(ps, optim.clip_norm(1.0), optim.momentum(0.9), optim.decay(0.1), lr=0.1),
            2,
        ),
        (lambda ps: optim.SAM(torch.optim.SGD(ps, lr=0.1)), 2),
        (lambda ps: optim.SAM(torch.optim.Adam(ps, lr=0.1)), 1),
        (lambda ps: torch.optim.ASGD(ps, lr=0.1), 2),
        (lambda ps: optim.Descent(ps, optim.adam(), lr=0.1), 1),
        (lambda ps: optim.Descent(ps, optim.momentum(0.9), optim.sign(), lr=0.1), 1),
        (lambda ps: optim.Descent(ps, optim.brake(), optim.momentum(0.9), lr=0.1), 2),
        (lambda ps: optim.AdEMAMix(ps, lr=0.1), 1),
        (lambda ps: optim.Descent(ps, optim.lion(kappa="huber"), lr=0.1), None),
    ],
)
def test_links_and_what_is_inside_of_a_wrapper_tell_how_it_steps(make, power):
    optimizer = make([nn.Parameter(torch.full((4,), 2.0))])
    named = {"w": optimizer.param_groups[0]["params"][0]}
    if power is None:
        with pytest.raises(ValueError, match='steps must be "gradient" or "normalised"'):
            effective_learning_rate(optimizer, named)
    else:
        assert effective_learning_rate(optimizer, named)["w"] == pytest.approx(0.1 / 4**power)


def test_weights_before_a_normalisation_are_scale_invariant_and_others_are_not():
    model = CNN(width=4, seed=0)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = {name: scale_dependence(model, x, name) for name in values if name.endswith("weight")}
    # With shifts of zero a gain, too, scales all that the next normalisation sees; the last has none behind.
    assert all(found[name] < 1e-3 for name in ("0.weight", "3.weight", "6.weight", "1.weight", "4.weight"))
    assert all(0.9 < found[name] < 1.1 for name in ("7.weight", "11.weight"))
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers()) and model.training


def test_a_bias_before_the_normalisation_keeps_some_dependence():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    biased, free = (MLP((8, 32, 32, 4), norm="layer", bias=bias, seed=0) for bias in (True, False))
    assert scale_dependence(free, x, "0.weight") < 1e-3
    assert 0.1 < scale_dependence(biased, x, "0.weight") < 0.5


def test_every_matrix_of_a_gpt_feels_its_length():
    model = GPT(11, context=6, layers=1, heads=2, width=16, seed=0)
    tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    matrices = [name for name, p in model.named_parameters() if p.dim() == 2]
    assert all(scale_dependence(model, tokens, name) > 0.3 for name in matrices)


def test_dependence_of_a_linear_model_is_the_ratio_of_two_explicit_moves():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2, bias=False).double(), torch.randn(5, 3, dtype=torch.float64)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise *= model.weight.detach().norm() / noise.norm()
    expected = (model(x).norm() / (x @ noise.T).norm()).item()
    assert scale_dependence(model, x, "weight", seed=4) == pytest.approx(expected)


def test_weight_must_be_known_and_returns_after_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"weight must name a parameter, got 'wight' \(did you mean weight\?\)"
    ):
        scale_dependence(model, torch.ones(1, 2), "wight")
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="finite tensor"):
        scale_dependence(model, torch.full((1, 2), 3e38), "weight", stretch=1e10)
    assert torch.equal(model.weight, before)


def test_the_length_is_felt_also_within_a_callers_autocast():
    model = GPT(11, context=6, layers=1, heads=2, width=16, seed=0)
    tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        before = model(tokens)
        assert scale_dependence(model, tokens, "head.weight") > 0.3
        assert torch.equal(model(tokens), before)
