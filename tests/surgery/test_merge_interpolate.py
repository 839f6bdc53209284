"""Averaged models and their corrected activations, against closed forms and corrections left unfolded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.surgery import interpolate, match_statistics
from thalweg.tasks import CNN, GPT, MLP, ResNet

HOWS = ("repair", "rescale", "reshift")
SHARE = 0.3


def nets():
    return (MLP((4, 9, 8, 7, 3), seed=seed).double() for seed in (0, 1))


def batches():
    source = torch.Generator().manual_seed(0)
    return [torch.randn(n, 4, generator=source, dtype=torch.float64) for n in (40, 25)]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def outputs(model, data):
    """What each linear layer puts out on all data, in order."""
    found = {}
    handles = [
        layer.register_forward_hook(lambda _, __, made, name=name: found.setdefault(name, []).append(made))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        for batch in data:
            model(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(made) for name, made in found.items()}


def spread(units):
    return units.std(0, correction=0)


def goals(start, end, data):
    one, other = outputs(start, data), outputs(end, data)
    return {
        name: (
            (1 - SHARE) * one[name].mean(0) + SHARE * other[name].mean(0),
            (1 - SHARE) * spread(one[name]) + SHARE * spread(other[name]),
        )
        for name in one
    }


def test_weights_and_statistics_lie_between_the_two():
    start, end = (CNN(width=2, seed=seed) for seed in (0, 1))
    for model in (start, end):
        model(torch.randn(5, 1, 8, 8))
    before = state(start), state(end)
    new, report = interpolate(start, end, SHARE, batches=())
    for name, value in new.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (1 - SHARE) * before[0][name] + SHARE * before[1][name])
    both = zip(start.parameters(), end.parameters(), strict=True)
    square = sum((p - q).detach().double().square().sum() for p, q in both)
    assert report.distance == pytest.approx(float(square) ** 0.5)
    assert same(state(start), before[0]) and same(state(end), before[1])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("at", [0.0, 1.0])
def test_at_the_ends_nothing_is_corrected(how, at):
    start, end = nets()
    new, report = interpolate(start, end, at, renormalise=how, batches=batches())
    expected = (start, end)[int(at)]
    for batch in batches():
        torch.testing.assert_close(new(batch), expected(batch), rtol=1e-9, atol=1e-9)
    assert all(one.before == pytest.approx(1) for one in report.layers.values())


def test_repaired_units_have_their_goals():
    start, end = nets()
    new, report = interpolate(start, end, SHARE, renormalise="repair", batches=batches())
    wanted, made = goals(start, end, batches()), outputs(new, batches())
    assert list(report.layers) == ["0", "2", "4"] and not report.norms
    for name, one in report.layers.items():
        torch.testing.assert_close(made[name].mean(0), wanted[name][0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(spread(made[name]), wanted[name][1], rtol=1e-6, atol=0)
        assert one.before < 0.9 and one.after == pytest.approx(1) and one.quiet == 0


@pytest.mark.parametrize("how", HOWS)
def test_folded_corrections_are_those_that_stand_behind_the_layer(how):
    start, end = nets()
    data = batches()
    new, _ = interpolate(start, end, SHARE, renormalise=how, batches=data)
    plain, _ = interpolate(start, end, SHARE)
    wanted = goals(start, end, data)
    for name in ("0", "2", "4"):
        z = outputs(plain, data)[name]
        mean, own, (goal, scale) = z.mean(0), spread(z), wanted[name]

        def behind(_, __, made, mean=mean, own=own, goal=goal, scale=scale):
            return {
                "repair": (made - mean) / own * scale + goal,
                "rescale": made / own * scale,
                "reshift": made - mean + goal,
            }[how]

        plain.get_submodule(name).register_forward_hook(behind)
    for batch in data:
        torch.testing.assert_close(new(batch), plain(batch), rtol=1e-9, atol=1e-10)


def test_convolutions_are_corrected_by_channel_and_get_a_bias_where_one_is_needed():
    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 5, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3, groups=1),
            nn.Flatten(),
            nn.Linear(64, 3),
        ).double()

    start, end = net(0), net(1)
    data = [torch.randn(6, 2, 8, 8, dtype=torch.float64)]
    new, _ = interpolate(start, end, 0.5, renormalise="repair", batches=data)
    first = [model[0](data[0]).movedim(1, 0).flatten(1) for model in (start, end, new)]
    torch.testing.assert_close(first[2].mean(1), (first[0].mean(1) + first[1].mean(1)) / 2)
    assert new[0].bias is not None and start[0].bias is None
    assert interpolate(start, end, 0.5, renormalise="rescale", batches=data)[0][0].bias is None


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("how", ["repair", "rescale"])
def test_transposed_convolutions_are_corrected_by_channel(groups, how):
    def net(seed):
        torch.manual_seed(seed)
        first = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups)
        return nn.Sequential(first, nn.ReLU(), nn.ConvTranspose2d(6, 1, 3)).double()

    start, end = net(0), net(1)
    data = [torch.randn(6, 4, 5, 5, dtype=torch.float64)]
    new, report = interpolate(start, end, 0.5, renormalise=how, batches=data)
    one, other, made = (model[0](data[0]).movedim(1, 0).flatten(1) for model in (start, end, new))
    if how == "repair":
        torch.testing.assert_close(made.mean(1), (one.mean(1) + other.mean(1)) / 2)
    torch.testing.assert_close(spread(made.T), (spread(one.T) + spread(other.T)) / 2)
    assert list(report.layers) == ["0"] and report.layers["0"].after == pytest.approx(1)


def test_channels_that_never_vary_are_left_alone():
    start, end = nets()
    with torch.no_grad():
        for model in (start, end):
            model[0].weight[2] = 0
    new, report = interpolate(start, end, 0.5, renormalise="repair", batches=batches())
    assert report.layers["0"].quiet == 1 and all(bool(p.isfinite().all()) for p in new.parameters())
    torch.testing.assert_close(new[0].bias[2], (start[0].bias[2] + end[0].bias[2]) / 2)


def test_statistics_of_batch_norm_are_gathered_anew_as_the_mean_over_batches():
    start, end = (MLP((4, 6, 3), norm="batch", seed=seed).double() for seed in (0, 1))
    data = batches()
    for model in (start, end):
        model(data[0])
    new, report = interpolate(start, end, 0.5, batches=data)
    made = [new[0](batch) for batch in data]
    torch.testing.assert_close(new[1].running_mean, sum(z.mean(0) for z in made) / 2)
    torch.testing.assert_close(new[1].running_var, sum(z.var(0) for z in made) / 2)
    assert report.norms == ("1",) and new.training and new[1].momentum == start[1].momentum


def test_layers_before_a_batch_norm_are_left_to_it():
    start, end = (ResNet(width=2, stages=2, blocks=1, seed=seed) for seed in (0, 1))
    data = [torch.randn(6, 1, 8, 8)]
    with pytest.raises(ValueError, match="layers must name a layer to correct, got none: ResNet"):
        interpolate(start, end, 0.5, renormalise="repair", batches=data)
    _, report = interpolate(start, end, 0.5, renormalise="repair", batches=data, layers=["blocks.1.first"])
    assert list(report.layers) == ["blocks.1.first"] and len(report.norms) == 6


def test_a_pruned_network_gets_its_activations_back_and_keeps_its_zeros():
    dense = next(iter(nets()))
    pruned = next(iter(nets()))
    with torch.no_grad():
        for layer in [*pruned][:-1:2]:
            order = layer.weight.abs().argsort(1)
            layer.weight.scatter_(1, order[:, : order.shape[1] // 2], 0)
    zeros = [(layer.weight == 0) for layer in [*pruned][::2]]
    wanted = outputs(dense, batches())
    for how in HOWS:
        new, report = match_statistics(pruned, dense, batches(), how=how)
        made = outputs(new, batches())
        assert all(
            bool((layer.weight[mask] == 0).all()) for layer, mask in zip([*new][::2], zeros, strict=True)
        )
        assert report.layers["4"].before < 0.8
        for name in report.layers:
            if how != "reshift":
                torch.testing.assert_close(spread(made[name]), spread(wanted[name]), rtol=1e-6, atol=0)
            if how != "rescale":
                torch.testing.assert_close(made[name].mean(0), wanted[name].mean(0))


def test_a_language_model_can_be_corrected():
    start, end = (GPT(9, 8, layers=1, heads=2, width=8, seed=seed) for seed in (0, 1))
    data = [torch.randint(9, (3, 6))]
    new, report = interpolate(start, end, 0.5, renormalise="repair", batches=data)
    assert list(report.layers) == [
        "blocks.0.attention.query_key_value",
        "blocks.0.attention.project",
        "blocks.0.feed_forward.expand",
        "blocks.0.feed_forward.contract",
    ]
    assert new(data[0]).shape == (3, 6, 9)


class Again(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.inner(functional.relu(self.inner(x))))


class Tied(MLP):
    def __init__(self, seed=0):
        super().__init__((4, 4, 4, 4), seed=seed)
        self[2].weight = self[0].weight


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda seed: MLP((4, 5, 2), seed=seed), {"at": 1.5}, r"at must be in \[0, 1\], got 1.5"),
        (lambda seed: MLP((4, 5, 2), seed=seed), {"renormalise": "repai"}, "renormalise must be one of"),
        (lambda seed: MLP((4, 5, 2), seed=seed), {"renormalise": "repair"}, "batches must hold data"),
        (
            lambda seed: MLP((4, 5, 2), seed=seed),
            {"renormalise": "repair", "batches": torch.zeros(3, 4)},
            "batches must be a list or loader of batches, got Tensor",
        ),
        (
            lambda seed: MLP((4, 5, 2), seed=seed),
            {"renormalise": "repair", "batches": [torch.zeros(3, 5)]},
            "batches must hold what MLP runs on",
        ),
        (lambda seed: MLP((4, 5, 2), norm="batch", seed=seed), {}, "batches must be given, since the model"),
        (
            Again,
            {"renormalise": "repair", "batches": [torch.randn(3, 4)]},
            r"layer 'inner' \(Linear\) must be run once a batch, not 2 times",
        ),
        (
            Tied,
            {"renormalise": "repair", "batches": [torch.randn(3, 4)]},
            r"layer '0' \(Linear\) must be with a weight of its own",
        ),
        (
            lambda seed: MLP((4, 5, 2), seed=seed),
            {"renormalise": "repair", "batches": [torch.randn(3, 4)], "layers": ["9"]},
            "layers must name modules of the model, got '9'",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_changes(make, options, said):
    start, end = make(0), make(1)
    before = state(start), state(end)
    with pytest.raises(ValueError, match=said):
        interpolate(start, end, **({"at": 0.5} | options))
    assert same(state(start), before[0]) and same(state(end), before[1]) and start.training


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"end must have '0\.weight' of shape \(5, 4\) like start"):
        interpolate(MLP((4, 5, 2)), MLP((4, 6, 2)))


class Masked(MLP):
    """Keeps a mask as attention does, with infinities."""

    def __init__(self, seed):
        super().__init__((3, 4, 3), seed=seed)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, x):
        return (super().forward(x)[:, None] + self.mask).softmax(-1)


@pytest.mark.parametrize("at", [0, 0.5, 1])
def test_infinities_that_both_models_have_stay(at):
    start, end, x = Masked(0), Masked(1), torch.randn(2, 3)
    new, _ = interpolate(start, end, at)
    assert torch.equal(new.mask, start.mask) and bool(new(x).isfinite().all())
    if at != 0.5:
        assert torch.equal(new(x), (start, end)[at](x))
    end.mask = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"end must have the buffer 'mask' of shape \(3, 3\) .* \(2, 2\)"):
        interpolate(start, end, at)
