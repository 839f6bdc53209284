"""Units where models put them: behind linear layers over images, in experts, in rows of flattened tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import (
    dormant_neurons,
    feature_diversity,
    feature_ranks,
    hub_neurons,
    local_complexity,
    neural_collapse,
    saturated_units,
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """As in ConvNeXt and Swin: linear layers over (batch, height, width, channels)."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv = kind, nn.Conv2d(3, 6, 1)
        self.up, self.act, self.down = nn.Linear(6, 8 if kind == "gated" else 10), nn.ReLU(), nn.Linear(10, 6)
        self.gate_down, self.head = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.up(self.conv(x).permute(0, 2, 3, 1))
        if self.kind == "gated":
            x, gate = x.chunk(2, -1)
            x = self.gate_down(self.act(x) * gate)
        else:
            x = self.down(functional.relu(x) if self.kind == "function" else self.act(x))
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize(("kind", "units"), [("module", 10), ("function", 10), ("gated", 4)])
def test_behind_a_linear_layer_over_an_image_units_are_the_last_dimension(kind, units):
    model, x = Block(kind), drawn(5, 3, 7, 9)
    with torch.no_grad():
        rows = model.up(model.conv(x).permute(0, 2, 3, 1))[..., :units].relu().flatten(0, 2)
    name, mean = "up" if kind == "function" else "act", rows.mean(0)
    torch.testing.assert_close(dormant_neurons(model, x).scores[name], mean / mean.mean())
    torch.testing.assert_close(saturated_units(model, x).flat[name], (rows == 0).double().mean(0))
    whole = rows.view(5, -1)
    assert feature_ranks(model, x)[name].columns == whole.shape[1]


class Grown(nn.Module):
    """A dense block: more channels are activated than the last layer made, whose number is the width."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(functional.relu(torch.cat([x, self.second(x)], 1))).mean((2, 3))


class Excited(nn.Module):
    """Squeeze and excitation: a linear layer runs last before an activation of (batch, channels, ...)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.scale, self.last = nn.Conv2d(3, 12, 1), nn.Linear(12, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        x = x * self.scale(x.mean((2, 3)))[..., None, None]
        return self.last(functional.relu(x)).mean((2, 3))


@pytest.mark.parametrize("model", [Grown(), Excited()])
@pytest.mark.parametrize("width", [4, 6, 8, 12])
def test_in_an_image_of_as_many_columns_as_the_layer_has_units_channels_are_units(model, width):
    (scores,) = dormant_neurons(model, drawn(5, 3, 5, width)).scores.values()
    assert scores.shape == (12,)


class Experts(nn.Module):
    """Each example goes to one expert, and none to the last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        chosen, result = (x[:, 0] > 0).long(), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            result[chosen == index] = expert(x[chosen == index])
        return self.head(result)


def test_an_expert_without_examples_is_left_out_and_the_others_are_measured_on_theirs():
    model, x = Experts(), drawn(40, 6)
    names = ["experts.0.1", "experts.1.1"]
    dormant, saturated, ranks = dormant_neurons(model, x), saturated_units(model, x), feature_ranks(model, x)
    assert list(dormant.scores) == list(saturated.flat) == list(ranks) == names
    assert list(hub_neurons(model, x).scores) == list(feature_diversity(model, x)) == names
    with torch.no_grad():
        for name, rows in zip(names, (x[x[:, 0] <= 0], x[x[:, 0] > 0]), strict=True):
            units = model.experts[int(name[8])][:2](rows)
            torch.testing.assert_close(dormant.scores[name], units.mean(0) / units.mean())
            torch.testing.assert_close(saturated.flat[name], (units == 0).double().mean(0))
            assert ranks[name].rows == len(rows)
    assert dormant.total == pytest.approx((torch.cat(list(dormant.scores.values())) <= 0.025).float().mean())


def test_layers_to_which_no_example_came_are_refused_by_name_of_the_batch():
    with pytest.raises(ValueError, match="batch must bring an example to at least one of the layers"):
        dormant_neurons(Experts(), drawn(4, 6), layers=["experts.2.1"])
    with pytest.raises(ValueError, match="batch must bring an example"):
        feature_ranks(Experts(), drawn(4, 6), layers=["experts.2.1"])


def test_collapse_is_profiled_where_there_is_a_row_for_each_label():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.mixture = nn.Linear(6, 6), nn.Tanh(), Experts()

        def forward(self, x):
            return self.mixture(self.act(self.first(x)))

    model, x, labels = Wide(), drawn(40, 6), torch.arange(40) % 3
    found = neural_collapse(model, (x, labels), batch_size=16)
    assert list(found.layers) == ["act", "mixture.head"]
    with torch.no_grad():
        alone = neural_collapse(nn.Sequential(model.first, nn.Linear(6, 3)), (x, labels), layers=["0"])
        features = torch.tanh(model.first(x))
    means = torch.stack([features[labels == k].mean(0) for k in range(3)])
    within = (features - means[labels]).square().sum(1).mean()
    between = (means - means.mean(0)).square().sum(1).mean()
    assert found.layers["act"] == pytest.approx((within / between).item(), rel=1e-5)
    assert alone.layers["0"] > 0


class Answer(nn.Module):
    """One number an example, made by an activation module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last, self.squash = (
            nn.Linear(6, 8),
            nn.ReLU(),
            nn.Linear(8, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.squash(self.last(self.act(self.first(x))).squeeze(-1))


def test_a_number_an_example_is_no_layer_of_units():
    model, x = Answer(), drawn(20, 6)
    for found in (
        dormant_neurons(model, x).scores,
        hub_neurons(model, x).scores,
        saturated_units(model, x).flat,
        feature_ranks(model, x),
        feature_diversity(model, x),
        local_complexity(model, x, radius=0.5, vertices=4).layers,
    ):
        assert list(found) == ["act"]


class Both(nn.Module):
    """An activation module, then a function."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b, self.c = nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.c(functional.relu(self.b(self.act(self.a(x)))))


def test_functions_beside_modules_count_in_every_probe():
    model, x = Both(), drawn(30, 4)
    modules = nn.Sequential(model.a, nn.ReLU(), model.b, nn.ReLU(), model.c)
    for measure in (
        lambda m: saturated_units(m, x).flat,
        lambda m: local_complexity(m, x, radius=0.5, vertices=6).layers,
        lambda m: neural_collapse(m, (x, torch.arange(30) % 3)).layers,
    ):
        found, expected = measure(model), measure(modules)
        assert list(found)[:2] == ["act", "b"] and len(found) == len(expected)
        torch.testing.assert_close(list(found.values()), list(expected.values()))


class Tokens(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.up, self.act, self.down = way, nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)

    def forward(self, x):
        if self.way == "plain":
            return self.down(self.act(self.up(x)))
        rows = (x.transpose(0, 1) if self.way == "time first" else x).reshape(-1, x.shape[-1])
        if self.way == "sorted":
            rows = rows[rows[:, 0].argsort()]
        return self.down(self.act(self.up(rows)))


@pytest.mark.parametrize("positions", [3, 8])
@pytest.mark.parametrize("chunk", [2, 64])
def test_flattened_positions_switch_as_those_of_a_sequence(positions, chunk):
    x = drawn(5, positions, 4)
    found, expected = (
        local_complexity(Tokens(way), x, radius=0.4, vertices=8, chunk=chunk) for way in ("flat", "plain")
    )
    assert found.total == expected.total > 0
    assert found.density == expected.density
    assert found.points.tolist() == expected.points.tolist()


@pytest.mark.parametrize("way", ["time first", "sorted"])
def test_rows_whose_points_cannot_be_told_are_refused(way):
    with pytest.raises(ValueError, match=r"layer 'act' must have the points first.* got another order"):
        local_complexity(Tokens(way), drawn(5, 3, 4), radius=0.4, vertices=8)


def test_an_expert_that_is_given_some_of_the_points_is_refused_and_others_can_be_named():
    model, x = Experts(), drawn(10, 6)
    with pytest.raises(ValueError, match=r"layer 'experts.0.1' must have the points first.*rows for 40"):
        local_complexity(model, x, radius=0.4, vertices=4)
    assert local_complexity(model, x, radius=0.4, vertices=4, layers=["head"]).total >= 0
