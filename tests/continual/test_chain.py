from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.continual import continual_backprop
from thalweg.nn import Elephant, GhostBatchNorm, RateDropout, TrActLinear


def renew(model: nn.Module, **kwargs):
    return continual_backprop(model, torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)


class Functional(nn.Module):
    """Activations, pooling and flattening as functions and methods, layers defined out of order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)
        self.hidden = nn.Linear(16, 5)
        self.conv = nn.Conv2d(1, 4, 3)
        self.slope = nn.PReLU()

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv(x)), 2)
        x = functional.dropout(self.hidden(x.view(x.size(0), -1)), training=self.training)
        return self.head(self.slope(x).tanh())


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.block(x).relu())


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 2))


def test_layers_are_found_in_the_order_in_which_they_run():
    assert renew(Functional()).layers == ("conv", "hidden")
    deep = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.LayerNorm(4), nn.Linear(4, 2), nn.Sigmoid()
    )
    assert renew(deep).layers == ("0.0",)
    assert renew(nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).layers == (
        "1",
    )


@pytest.mark.parametrize("kind", [1, 3])
def test_convolutions_of_other_dimensions_are_followed(kind):
    conv = (nn.Conv1d, None, nn.Conv3d)[kind - 1]
    pool = (nn.MaxPool1d, None, nn.AvgPool3d)[kind - 1]
    norm = (nn.BatchNorm1d, None, nn.BatchNorm3d)[kind - 1]
    model = nn.Sequential(
        conv(1, 4, 3), norm(4), nn.ReLU(), pool(2), conv(4, 2, 1), nn.Flatten(), nn.Linear(2, 2)
    )
    renewal = renew(model, rate=1, maturity=0)
    model(torch.randn(3, 1, *[4] * kind))
    assert {name: sorted(units) for name, units in renewal.step().items()} == {"0": [0, 1, 2, 3], "4": [0, 1]}
    assert bool((model[4].weight != 0).all()), (
        "rows of the second layer were drawn after the columns were cleared"
    )
    assert bool((model[6].weight == 0).all())


def test_grouped_convolutions_can_make_units():
    model = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 1, 1))
    renewal = renew(model, rate=1, maturity=0)
    model(torch.randn(1, 2, 3, 3))
    assert len(renewal.step()["0"]) == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Skip, r"operation 'relu' must be read once, got 2 readers"),
        (tied, r"module '0' \(Linear\) must not share its weight"),
        (twice, r"module '0' \(Linear\) must run once a pass, got 2 runs"),
        (
            lambda: nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)),
            r"module '0' \(ParametrizedLinear\) must be a plain Linear",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2)),
            r"module '2' \(Conv2d\) must not be grouped, got groups=2",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.GLU(), nn.Linear(2, 2)),
            r"module '1' \(GLU\) is not understood between module '0' \(Linear\) and its reader",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1)),
            r"module '1' \(GroupNorm\) is not understood",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2), nn.Linear(2, 2)),
            r"module '1' \(MaxPool1d\) pools over the units of module '0'",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Linear(4, 2)),
            r"module '2' \(Linear\) reads another dimension",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(3), nn.Linear(6, 2)),
            r"module '1' \(BatchNorm1d\) must have one entry for each of 6 units",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Bilinear(6, 6, 2)),
            r"module '2' \(Bilinear\) is not understood: name in layers",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to("meta"),
            r"module '0' \(Linear\) must hold numbers",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 2)),
            "must have a hidden linear or convolutional layer, got none",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 2), Branch()), "must be traceable by torch.fx, got Sequential"),
    ],
)
def test_what_is_not_understood_is_named_and_gets_no_hook(build, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        renew(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def stepped(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[int, ...]]:
    renewal = renew(model, rate=0.5, maturity=0)
    model(x).square().mean().backward()
    return renewal.step()


def test_activations_dropout_and_ghost_norms_of_the_nn_room_are_followed():
    """They have code of their own, in which a trace would get lost."""
    torch.manual_seed(0)
    parts = [GhostBatchNorm(6, 2), Elephant(), RateDropout(0.1)]
    model = nn.Sequential(nn.Linear(4, 6), *parts, nn.Linear(6, 2))
    with torch.no_grad():
        parts[0].weight.fill_(5)
    (units,) = stepped(model, torch.randn(8, 4)).values()
    assert len(units) == 3 and (model[4].weight[:, list(units)] == 0).all()
    assert (parts[0].weight == 1).nonzero().flatten().tolist() == sorted(units)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [nn.Linear(4, 6), Elephant(units=6)],
            r"module '1' \(Elephant\) is not understood between module '0'",
        ),
        ([TrActLinear(4, 6), nn.ReLU()], r"module '0' \(TrActLinear\) must be a plain Linear or convolution"),
    ],
)
def test_parts_of_the_nn_room_that_hold_something_for_each_unit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        renew(nn.Sequential(*parts, nn.Linear(6, 2)))


def test_a_compiled_part_is_looked_into():
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    model = nn.Sequential(torch.compile(inside, backend="eager"), nn.ReLU(), nn.Linear(5, 2))
    found = stepped(model, torch.randn(8, 4))
    assert {name: len(units) for name, units in found.items()} == {"0._orig_mod.0": 3, "0._orig_mod.2": 2}
    assert (model[2].weight[:, list(found["0._orig_mod.2"])] == 0).all()


def test_named_layers_leave_the_rest_of_the_model_alone():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    assert renew(model, layers=["4", "0"]).layers == ("0", "4")
    with pytest.raises(ValueError, match=r"module '3' \(GLU\)"):
        renew(model, layers=["2"])
    with pytest.raises(ValueError, match=r"module '6' \(Linear\) makes the model's output"):
        renew(model, layers=["6"])
    with pytest.raises(ValueError, match="layers that the model runs, got 'head'"):
        renew(model, layers=["head"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rate": 1.5}, r"rate must be in \[0, 1\], got 1.5"),
        ({"maturity": -1}, "maturity must be an integer >= 0, got -1"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"utility": "contribute"}, "utility must be one of .*did you mean contribution"),
        ({"init": "he"}, "init must be one of default, kaiming, lecun, xavier; got 'he'"),
        ({"layers": "0"}, "layers must be a collection of names, got the string '0'"),
        ({"moments": "exp_avg"}, "moments must be a collection of names, got the string 'exp_avg'"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        renew(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), **kwargs)


def test_layers_that_the_optimizer_does_not_train_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="module '0' must be trained by the optimizer"):
        continual_backprop(model, optimizer)
    model[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="module '2' must be trained by the optimizer"):
        renew(model)
