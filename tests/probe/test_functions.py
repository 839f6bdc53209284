"""Activations that are function calls are heard like modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.nn import Elephant
from thalweg.probe import (
    dormant_neurons,
    feature_diversity,
    feature_ranks,
    hub_neurons,
    local_complexity,
    neural_collapse,
    saturated_units,
)
from thalweg.surgery import reset_dormant

X = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(40) % 4


class Called(nn.Module):
    """Convolution, normalisation and two dense layers, with every activation a function call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)
        self.fc1, self.fc2, self.out = nn.Linear(80, 12), nn.Linear(12, 7), nn.Linear(7, 4)
        self.double()

    def forward(self, x):
        x = functional.relu_(self.norm(self.conv(x)))
        x = functional.leaky_relu(self.fc1(x.flatten(1)), negative_slope=0.1)
        return self.out(self.fc2(x).tanh())


NAMES = {"2": "conv", "5": "fc1", "7": "fc2"}


def as_modules(model: Called) -> nn.Sequential:
    """The same layers and functions, as modules."""
    convolution = (model.conv, model.norm, nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolution, model.fc1, nn.LeakyReLU(0.1), model.fc2, nn.Tanh(), model.out)


PROBES = {
    "dormant": lambda m: dormant_neurons(m, X, threshold=0.5).scores,
    "hubs": lambda m: hub_neurons(m, X, factor=1.2).units,
    "ranks": lambda m: feature_ranks(m, X),
    "diversity": lambda m: feature_diversity(m, X, LABELS),
    "flat": lambda m: saturated_units(m, X, slope=0.5).flat,
    "linear": lambda m: saturated_units(m, X, slope=0.5).linear,
    "complexity": lambda m: local_complexity(m, X, radius=0.5, vertices=6).layers,
    "collapse": lambda m: {
        name: value
        for name, value in neural_collapse(m, (X, LABELS)).layers.items()
        if name not in ("out", "8")
    },
}


@pytest.mark.parametrize("probe", PROBES)
def test_functions_give_the_numbers_of_modules_under_the_names_of_the_layers_before_them(probe):
    model = Called()
    found, expected = PROBES[probe](model), PROBES[probe](as_modules(model))
    assert list(found) == [NAMES[name] for name in expected]
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[NAMES[name]], value)
        else:
            assert found[NAMES[name]] == value


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_transformer_of_torch_is_heard_though_it_evaluates_in_one_kernel(activation, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.3, activation=activation, batch_first=True, norm_first=norm_first
    )
    model, x = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval(),
        torch.randn(5, 3, 8),
    )
    pad = torch.zeros(5, 3, dtype=torch.bool)
    pad[:, 2] = True
    batch = {"src": x, "src_key_padding_mask": pad}
    read: dict[str, torch.Tensor] = {}
    for index, one in enumerate(model.layers):
        one.linear2.register_forward_pre_hook(
            lambda _, inputs, index=index: read.update({f"layers.{index}.linear1": inputs[0].detach()})
        )
    with torch.no_grad():
        model(**batch)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    found = dormant_neurons(model, batch)
    assert list(found.scores) == ["layers.0.linear1", "layers.1.linear1"] == list(read)
    for name, units in read.items():
        activity = units.abs().mean((0, 1))
        torch.testing.assert_close(found.scores[name], activity / activity.mean(), rtol=1e-4, atol=1e-6)
    for one in model.layers:
        one.linear2._forward_pre_hooks.clear()
    torch.testing.assert_close(dormant_neurons(model, batch).scores, found.scores)  # nothing hooks it now
    by_name = dormant_neurons(model, batch, inputs_of=["layers.0.linear2", "layers.1.linear2"]).scores
    torch.testing.assert_close(list(by_name.values()), list(found.scores.values()))
    assert list(saturated_units(model, batch).flat) == list(found.scores) == list(feature_ranks(model, batch))
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_activation_module_of_torchs_transformer_is_heard_as_ever():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True)
    assert list(dormant_neurons(layer.eval(), torch.randn(5, 3, 8)).scores) == ["activation"]


class Odd(nn.Module):
    """A parameter kept positive, a hand-written GELU, a cap, a layer run twice, an input function."""

    def __init__(self):
        super().__init__()
        self.fc, self.gain, self.out = nn.Linear(3, 3), nn.Parameter(torch.zeros(1, 3)), nn.Linear(3, 2)

    def forward(self, x):
        x = functional.silu(input=x) * functional.softplus(self.gain)
        for _ in range(2):
            x = torch.relu(self.fc(x))
        x = self.fc(x)
        x = 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))
        return 30 * torch.tanh(self.out(x) / 30)


def test_what_is_a_unit_and_what_is_part_of_a_formula():
    torch.manual_seed(0)
    assert list(dormant_neurons(Odd(), torch.randn(9, 3)).scores) == ["silu", "fc", "fc[1]"]


def test_the_names_are_those_that_a_reset_takes():
    torch.manual_seed(0)

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc2(functional.relu(self.fc1(x)))

    model, x = Dense(), torch.randn(30, 4)
    with torch.no_grad():
        model.fc1.weight[2], model.fc1.bias[2] = 0, -1
    report = reset_dormant(model, dormant_neurons(model, x), threshold=0)
    assert report.units == {"fc1": (2,)}
    assert dormant_neurons(model, x).dead == {"fc1": 0}


def test_a_part_that_is_compiled_on_its_own_is_heard():
    model = Called()
    expected = dormant_neurons(model, X).scores
    found = dormant_neurons(nn.Sequential(torch.compile(model, backend="eager")), X).scores
    torch.testing.assert_close(list(found.values()), list(expected.values()))


def test_the_model_is_left_as_it_was_also_after_an_error():
    model = Called().train()
    dormant_neurons(model, X)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="finite"):
        dormant_neurons(model, X * torch.nan)
    assert not any(m._forward_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (dormant_neurons, "with layers=, .* with inputs_of=, got neither"),
        (hub_neurons, "with layers=, .* with inputs_of=, got neither"),
        (feature_ranks, "with layers=, .* with inputs_of=, got neither"),
        (feature_diversity, "with layers=, .* with inputs_of=, got neither"),
        (saturated_units, "layers= as a mapping .*inputs_of="),
        (lambda m, x: local_complexity(m, x, radius=1.0, vertices=2), "with layers= .*inputs_of="),
    ],
)
def test_where_nothing_can_be_heard_the_error_says_what_to_name(probe, message):
    with pytest.raises(
        ValueError, match=f"no activation modules and calls no activation function.*{message}"
    ):
        probe(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(5, 3))


class Mixed(nn.Module):
    """A function behind the first layer, modules behind the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 1)
        self.act, self.out = nn.ReLU(), nn.Sigmoid()

    def forward(self, x):
        return self.out(self.third(self.act(self.second(functional.relu(self.first(x))))))


def test_functions_beside_modules_are_heard_and_each_layer_once():
    model, x = Mixed(), torch.randn(40, 6)
    with torch.no_grad():
        model.first.bias.fill_(-50)
    found = dormant_neurons(model, x)
    assert list(found.dead) == ["first", "act", "out"]
    assert found.dead["first"] == 1.0 and found.scores["first"].shape == (16,)
    assert list(feature_ranks(Mixed(), x)) == ["first", "act", "out"]


class Swish(nn.Module):
    """SiLU written out in the ways that one finds, and sigmoids that are none of it."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.first, self.second, self.out = way, nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 4)

    def act(self, x):
        return {
            "left": lambda: x * torch.sigmoid(x),
            "right": lambda: x.sigmoid() * x,
            "method": lambda: x.mul(functional.sigmoid(x)),
            "in place": lambda: x.mul_(x.sigmoid()),
            "silu": lambda: functional.silu(x),
            "sigmoid": lambda: torch.sigmoid(x),
            "halved": lambda: torch.sigmoid(x) * 0.5,
        }[self.way]()

    def forward(self, x):
        return self.out(self.act(self.second(self.act(self.first(x)))))


@pytest.mark.parametrize("way", ["left", "right", "method", "in place"])
def test_a_product_with_its_own_sigmoid_is_one_activation(way):
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    for measure in (
        lambda m: dormant_neurons(m, x).scores,
        lambda m: saturated_units(m, x, slope=0.1).flat,
        lambda m: {name: float(one.effective_rank) for name, one in feature_ranks(m, x).items()},
        lambda m: local_complexity(m, x, radius=0.5, vertices=6).layers,
        lambda m: neural_collapse(m, (x, torch.arange(50) % 4)).layers,
    ):
        found, expected = measure(Swish(way)), measure(Swish("silu"))
        assert list(found)[:2] == ["first", "second"] and list(found) == list(expected)
        torch.testing.assert_close(list(found.values()), list(expected.values()))


def test_a_sigmoid_alone_is_heard_as_ever():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    model, again = Swish("sigmoid"), Swish("halved")
    with torch.no_grad():
        first = torch.sigmoid(model.first(x))
        flat = (first * (1 - first) <= 0.1).double().mean(0)
    assert list(saturated_units(model, x, slope=0.1).flat) == ["first", "second"]
    torch.testing.assert_close(saturated_units(model, x, slope=0.1).flat["first"], flat)
    for found in (dormant_neurons(model, x).scores, dormant_neurons(again, x).scores):
        torch.testing.assert_close(found["first"], first.mean(0) / first.mean())


def test_a_module_that_says_so_is_an_activation():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), Elephant(), nn.Linear(9, 4)), torch.randn(50, 6)
    with torch.no_grad():
        units = model[:2](x)
    torch.testing.assert_close(dormant_neurons(model, x).scores["1"], units.mean(0) / units.mean())
    assert list(saturated_units(model, x).flat) == ["1"] == list(feature_ranks(model, x))
