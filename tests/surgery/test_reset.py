from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import thalweg.surgery
from thalweg.nn import Elephant, GhostBatchNorm, RateDropout
from thalweg.probe import dormant_neurons
from thalweg.surgery import reset_dormant


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def scores(*dormant: int, units: int = 6) -> torch.Tensor:
    vector = torch.ones(units)
    vector[list(dormant)] = 0
    return vector


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dormant_units_are_redrawn_silenced_and_nothing_else_moves():
    model = mlp()
    before = snapshot(model)
    report = reset_dormant(model, {"1": scores(1, 4)}, generator=torch.Generator().manual_seed(3))
    fresh = nn.init.xavier_uniform_(torch.empty(6, 4), generator=torch.Generator().manual_seed(3))
    expected = dict(before)
    expected["0.weight"] = before["0.weight"].clone()
    expected["0.weight"][[1, 4]] = fresh[[1, 4]]
    expected["0.bias"] = before["0.bias"].clone()
    expected["0.bias"][[1, 4]] = 0
    expected["2.weight"] = before["2.weight"].clone()
    expected["2.weight"][:, [1, 4]] = 0
    assert unchanged(model, expected)
    assert (report.units, report.total, report.states) == ({"1": (1, 4)}, 2, ())


def test_redrawn_weights_fill_the_xavier_interval_of_the_whole_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 200, 3), nn.ReLU(), nn.Conv2d(200, 1, 1))
    reset_dormant(model, {"1": torch.zeros(200)})
    bound = (6 / (2 * 9 + 200 * 9)) ** 0.5
    weight = model[0].weight
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2) and weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert weight.shape == (200, 2, 3, 3)


def test_silent_units_are_revived_without_changing_the_function():
    model = mlp()
    with torch.no_grad():
        model[0].bias[[0, 3]] = -100
    x = torch.randn(256, 4)
    before = model(x)
    found = dormant_neurons(model, x, threshold=0)
    report = reset_dormant(model, found, threshold=0)
    assert {0, 3} <= set(report.units["1"])
    torch.testing.assert_close(model(x), before)
    assert set(report.units["1"]).isdisjoint(
        (dormant_neurons(model, x, threshold=0).scores["1"] == 0).nonzero().flatten().tolist()
    )


def test_a_weight_between_two_dormant_units_ends_at_zero():
    model = mlp()
    reset_dormant(model, {"1": scores(2), "3": scores(1, units=5)})
    weight = model[2].weight
    assert weight[:, 2].tolist() == [0] * 5
    assert bool((weight[1, [0, 1, 3, 4, 5]] != 0).all())
    assert model[4].weight[:, 1].tolist() == [0] * 3


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model, backend="eager"))],
)
def test_a_wrapped_model_is_reset_inside(wrap):
    model = mlp()
    report = reset_dormant(wrap(model), {"1": scores(1, 4)})
    assert report.units == {"1": (1, 4)}
    assert model[2].weight[:, [1, 4]].abs().sum() == 0 and model[2].weight[:, 0].abs().sum() > 0


def test_a_compiled_part_is_reset_inside():
    model = mlp()
    whole = nn.Sequential(torch.compile(model[:3], backend="eager"), *model[3:])
    x = torch.randn(16, 4)
    found = dormant_neurons(whole, x, threshold=0.5)
    expected = dormant_neurons(copy.deepcopy(model), x, threshold=0.5)
    report = reset_dormant(whole, found, threshold=0.5)
    assert report.total > 0
    assert list(report.units.values()) == list(reset_dormant(mlp(), expected, threshold=0.5).units.values())
    assert (model[2].weight[:, list(report.units["0._orig_mod.1"])] == 0).all()
    assert torch.allclose(whole(x), model(x))


def test_activations_and_norms_of_the_nn_room_are_passed():
    """They have code of their own, in which a trace would get lost."""
    norm = GhostBatchNorm(6, 2)
    model = nn.Sequential(nn.Linear(4, 6), norm, Elephant(), RateDropout(0.1), nn.Linear(6, 2))
    with torch.no_grad():
        norm.weight.fill_(5)
    assert reset_dormant(model, {"2": scores(1, 4)}).units == {"2": (1, 4)}
    assert (model[4].weight[:, [1, 4]] == 0).all() and norm.weight.tolist() == [5, 1, 5, 5, 1, 5]
    with pytest.raises(ValueError, match=r"module '1' \(Elephant\) is not understood between"):
        reset_dormant(nn.Sequential(nn.Linear(4, 6), Elephant(units=6), nn.Linear(6, 2)), {"1": scores(1)})


def test_a_model_without_numbers_is_refused():
    with pytest.raises(ValueError, match=r"model must hold its weights, got '0\.weight' on the meta device"):
        reset_dormant(mlp().to("meta"), {"1": scores(1)})


def test_threshold_is_inclusive():
    model = mlp()
    report = reset_dormant(model, {"1": torch.tensor([0.0, 0.1, 0.100001, 1, 2, 3])}, threshold=0.1)
    assert report.units == {"1": (0, 1)}


def test_moments_are_zeroed_where_weights_were_written_and_steps_stay():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(32, 4)).square().sum().backward()
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    report = reset_dormant(model, {"1": scores(1)}, optimizer=optimizer)
    after = optimizer.state_dict()["state"]
    assert report.states == ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    for name in report.states:
        expected = {index: state[name].clone() for index, state in before.items()}
        # Parameters 0 and 2 are the weights on the unit's two sides.
        expected[0][1], expected[2][:, 1] = 0, 0
        assert all(torch.equal(after[index][name], value) for index, value in expected.items())
    assert all(state["step"] == 3 for state in after.values())


def test_only_the_named_moments_are_zeroed():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    for p in model.parameters():
        optimizer.state[p]["slow_weights"] = torch.ones_like(p)
    report = reset_dormant(model, {"1": scores(1)}, optimizer=optimizer, moments=["momentum_buffer"])
    assert report.states == ("momentum_buffer",)
    assert bool((optimizer.state[model[0].weight]["slow_weights"] == 1).all())
    assert optimizer.state[model[0].weight]["momentum_buffer"][1].tolist() == [0] * 4


class Flattened(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.conv, self.act, self.dense = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Linear(3 * 4, 2)
        self.flatten = flatten

    def forward(self, x):
        return self.dense(self.flatten(functional.max_pool2d(self.act(self.conv(x)), 2)))


@pytest.mark.parametrize(
    "flatten",
    [
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape((x.shape[0], -1)),
    ],
)
def test_a_channel_owns_its_run_of_inputs_behind_a_flattening(flatten):
    torch.manual_seed(0)
    model = Flattened(flatten)
    x = torch.randn(5, 1, 6, 6)
    # The inputs that really depend on channel 1: where the dense layer's input changes with it.
    heard = []
    handle = model.dense.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].detach()))
    model(x)
    with torch.no_grad():
        model.conv.bias[1] += 100
    model(x)
    handle.remove()
    columns = (heard[0] != heard[1]).any(0)
    assert int(columns.sum()) == 4
    reset_dormant(model, {"act": scores(1, units=3)})
    assert torch.equal((model.dense.weight == 0).all(0), columns)


def test_convolutions_with_batch_normalisation_keep_the_function_of_dead_channels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(), nn.Conv2d(4, 3, 1)
    )
    model(torch.randn(16, 2, 8, 8))
    with torch.no_grad():
        model[1].weight[:] = 2
        model[1].bias[2] = -1000
    model.eval()
    x = torch.randn(4, 2, 8, 8)
    before, old = model(x), snapshot(model)
    report = reset_dormant(model, dormant_neurons(model, x, threshold=0), threshold=0)
    assert report.units == {"2": (2,)}
    torch.testing.assert_close(model(x), before)
    norm = model[1]
    assert [t[2].item() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)] == [
        1,
        0,
        0,
        1,
    ]
    others = [0, 1, 3]
    assert torch.equal(norm.running_var[others], old["1.running_var"][others])
    assert norm.weight[others].tolist() == [2, 2, 2]
    assert model[5].weight[:, 2].abs().sum() == 0


def test_layer_normalisation_entries_are_reset():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 1))
    nn.init.constant_(model[1].weight, 3.0)
    nn.init.constant_(model[1].bias, 3.0)
    reset_dormant(model, {"2": scores(0, units=4)})
    assert (model[1].weight.tolist(), model[1].bias.tolist()) == ([1, 3, 3, 3], [0, 3, 3, 3])


class FunctionCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.second(functional.relu(self.first(x)))))


def test_scores_may_name_the_layer_itself_where_activations_are_function_calls():
    torch.manual_seed(0)
    model = FunctionCalls()
    before = snapshot(model)
    reset_dormant(model, SimpleNamespace(scores={"first": scores(1, units=4)}))
    assert model.second.weight[:, 1].tolist() == [0] * 4
    assert not torch.equal(model.first.weight[1], before["first.weight"][1])
    assert torch.equal(model.last.weight, before["last.weight"])


class SharedActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1), nn.ReLU()

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


def test_the_second_run_of_a_shared_activation_is_its_own_layer():
    model = SharedActivation()
    found = dormant_neurons(model, torch.randn(8, 3))
    assert list(found.scores) == ["act", "act[1]"]
    before = snapshot(model)
    reset_dormant(model, {"act": scores(units=4), "act[1]": scores(2, units=4)})
    assert model.c.weight[0, 2] == 0
    assert torch.equal(model.a.weight, before["a.weight"])


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.act, self.out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.act(self.inner(x))
        return hidden + self.out(hidden)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.layer(self.act(self.layer(x)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.act(x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 4))


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


REFUSED = {
    "skip": (Skip(), "act", r"module 'act' \(ReLU\) must be read once, got 2 readers"),
    "twice": (Twice(), "act", r"module 'layer' \(Linear\) must run once"),
    "control flow": (Branching(), "act", "must be traceable by torch.fx, got Branching with TraceError"),
    "tied": (tied(), "1", "module '0' must not share its weight"),
    "parametrized": (spectral(), "1", r"module '0' \(ParametrizedLinear\) must be a plain Linear"),
    "output": (chain(nn.Linear(4, 4), nn.Tanh()), "1", "reached without a Linear or Conv2d that reads"),
    "softmax": (
        chain(nn.Linear(4, 4), nn.ReLU(), nn.Softmax(-1), nn.Linear(4, 4)),
        "1",
        r"module '2' \(Softmax\) is not understood between the units and a Linear",
    ),
    "no maker": (chain(nn.ReLU(), nn.Linear(4, 4)), "0", "operation 'input_1' is not understood"),
    "transposed": (
        chain(nn.ConvTranspose2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        "1",
        r"module '0' \(ConvTranspose2d\) is not understood",
    ),
    "grouped": (
        chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)),
        "1",
        r"module '2' \(Conv2d\) must not be grouped, got groups=2",
    ),
    "not flattened": (
        chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 4)),
        "1",
        r"module '2' \(Linear\) reads another dimension",
    ),
    "flattened time": (
        chain(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)),
        "1",
        r"module '3' \(Linear\) must read the 4 units, got 12 inputs",
    ),
    "pooled units": (
        chain(nn.Linear(3, 4), nn.ReLU(), nn.MaxPool2d(1), nn.Linear(4, 2)),
        "1",
        r"module '2' \(MaxPool2d\) pools over the units",
    ),
    "group norm": (
        chain(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 1, 1)),
        "2",
        r"module '1' \(GroupNorm\) is not understood",
    ),
    "frozen": (
        chain(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4).requires_grad_(False)),
        "1",
        "module '2' must be trained to be given fresh units, got it frozen",
    ),
    "unknown": (
        chain(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        "act",
        "the model runs, got 'act'",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_understood_is_named_and_nothing_is_half_applied(case):
    model, name, message = REFUSED[case]
    before, random = snapshot(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        reset_dormant(model, {name: scores(1, units=4)})
    assert unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_unless_strict_what_is_not_understood_is_left_alone_and_said(case):
    model, name, message = REFUSED[case]
    before = snapshot(model)
    with pytest.warns(UserWarning, match=f"thalweg: no unit could be reset: .*{message}"):
        report = reset_dormant(model, {name: scores(1, units=4)}, strict=False)
    assert unchanged(model, before)
    assert (report.units, report.total) == ({}, 0)
    assert list(report.left) == [name] and re.search(message, report.left[name])


def test_unless_strict_the_other_layers_are_reset_as_ever():
    model, alone = mlp(), mlp()
    given = {"1": scores(1), "3": scores(2), "nowhere": scores(0)}  # layer 3 has 5 units, not 6
    found = reset_dormant(model, given, strict=False, generator=torch.Generator().manual_seed(3))
    assert found.units == {"1": (1,)} and found.total == 1
    assert list(found.left) == ["3", "nowhere"]
    reset_dormant(alone, {"1": scores(1)}, generator=torch.Generator().manual_seed(3))
    assert unchanged(model, snapshot(alone))


def test_a_good_layer_is_left_alone_when_a_later_one_is_refused():
    model = mlp()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"scores of '3' must have shape \(5,\), got \(6,\)"):
        reset_dormant(model, {"1": scores(1), "3": scores(1)})
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must be a non-empty mapping of layers to scores"),
        (torch.ones(6), "must be a non-empty mapping of layers to scores .* got Tensor"),
        ({"1": torch.ones(2, 3)}, r"scores of '1' must be a vector \(units,\)"),
        ({"1": torch.full((6,), torch.nan)}, "without NaN"),
    ],
)
def test_scores_are_checked(given, message):
    with pytest.raises(ValueError, match=message):
        reset_dormant(mlp(), given)


def test_room_lists_the_reset():
    assert {"ResetReport", "reset_dormant"} <= set(dir(thalweg.surgery))
