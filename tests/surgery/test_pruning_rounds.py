"""Rounds of training, pruning and rewinding against a literal loop over the same steps."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from edited_models import REFUSED, mlp, same, snapshot
from torch import nn
from torch.nn import functional

from thalweg.surgery import (
    adaptive_cut,
    hold_masks,
    pq_index,
    prune_in_rounds,
    random_masks,
    share_cut,
    ticket_distance,
)

WEIGHTS = ["0.weight", "2.weight", "4.weight"]


def batch(step):
    source = torch.Generator().manual_seed(step)
    x = torch.randn(32, 4, generator=source)
    return x, (x[:, :3] + x[:, 1:]).argmax(1)


def loss_at(model, step):
    x, y = batch(step)
    return functional.cross_entropy(model(x), y)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def train(model, masks, steps=range(3, 12)):
    optimizer = optimizer_of(model)
    held = hold_masks(optimizer, model, masks)
    for step in steps:
        optimizer.zero_grad()
        loss_at(model, step).backward()
        optimizer.step()
    held.remove()
    return "trained"


def literal_rounds(start, rounds, share):
    """Masks on before every forward pass, a threshold over all remaining weights together."""
    masks = {name: torch.ones_like(start.get_parameter(name)) for name in WEIGHTS}
    for level in range(rounds + 1):
        model = copy.deepcopy(start)
        optimizer = optimizer_of(model)
        for step in range(3, 12):
            with torch.no_grad():
                for name in WEIGHTS:
                    model.get_parameter(name).mul_(masks[name])
            optimizer.zero_grad()
            loss_at(model, step).backward()
            optimizer.step()
        with torch.no_grad():
            for name in WEIGHTS:
                model.get_parameter(name).mul_(masks[name])
        yield level, {name: mask.bool() for name, mask in masks.items()}, model
        left = sorted(
            (abs(model.get_parameter(name).flatten()[i].item()), name, i)
            for name in WEIGHTS
            for i in range(masks[name].numel())
            if masks[name].flatten()[i]
        )
        for _, name, i in left[: math.ceil(share * len(left))]:
            masks[name].view(-1)[i] = 0


def at_step_3():
    model = mlp()
    train(model, {}, range(3))
    return model


def test_rewound_rounds_equal_the_literal_loop():
    start = at_step_3()
    before = snapshot(start)
    found = list(prune_in_rounds(start, train, share_cut(0.3), rounds=4))
    assert [one.level for one in found] == [0, 1, 2, 3, 4]
    for one, (_, masks, model) in zip(found, literal_rounds(start, 4, 0.3), strict=True):
        assert one.result == "trained"
        assert all(torch.equal(one.masks[name], masks[name]) for name in WEIGHTS)
        for name, p in model.named_parameters():
            torch.testing.assert_close(one.model.get_parameter(name), p)
    assert same(start, before)


def test_each_cut_takes_its_share_of_what_is_left():
    left, expected = 69, []
    for _ in range(6):
        expected.append(left / 69)
        left -= math.ceil(0.2 * left)
    found = list(prune_in_rounds(mlp(), train, share_cut(), rounds=5))
    assert [one.density for one in found] == pytest.approx(expected)
    survivors = [one.masks for one in found]
    for old, new in pairwise(survivors):
        assert not any(bool((new[name] & ~old[name]).any()) for name in WEIGHTS)


def test_buffers_return_to_where_they_began():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    train(model, {}, range(3))
    begun = []

    def watched(current, masks):
        begun.append(current[1].running_mean.clone())
        return train(current, masks)

    for one in prune_in_rounds(model, watched, share_cut(0.5), rounds=2):
        assert not torch.equal(one.model[1].running_mean, begun[0])
    assert all(torch.equal(mean, model[1].running_mean) for mean in begun)


def slow_adaptive(weights, masks, scope, p, q, eta, gamma, beta):
    """Entry by entry, with the index and the bound written out."""
    places = [
        (name, i, i // (masks[name].numel() // len(masks[name])))
        for name in masks
        for i in range(masks[name].numel())
        if masks[name].flatten()[i]
    ]
    key = {"model": lambda _: 0, "layer": lambda at: at[0], "row": lambda at: (at[0], at[2])}[scope]
    new = {name: mask.clone() for name, mask in masks.items()}
    for group in {key(at) for at in places}:
        members = [at for at in places if key(at) == group]
        size = {at: abs(weights[at[0]].flatten()[at[1]].item()) for at in members}
        d = len(members)
        top = sum(s**p for s in size.values()) ** (1 / p)
        bottom = sum(s**q for s in size.values()) ** (1 / q)
        index = 1 - d ** (1 / q - 1 / p) * top / bottom
        m = math.ceil(d * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p)))
        ratio = Fraction(str(gamma)) * (1 - Fraction(m, d))
        count = math.floor(d * min(max(ratio, 0), Fraction(str(beta))))
        for name, i, _ in sorted(members, key=lambda at: size[at])[:count]:
            new[name].view(-1)[i] = False
    return new


@pytest.mark.parametrize("scope", ["row", "layer", "model"])
@pytest.mark.parametrize(
    "how",
    [
        {"p": 0.5, "q": 1.0, "eta": 0.0, "gamma": 1.0, "beta": 0.9},
        {"p": 0.2, "q": 2.0, "eta": 0.05, "gamma": 3.0, "beta": 0.4},
    ],
)
def test_adaptive_cuts_equal_the_slow_transcription(scope, how):
    model = mlp()
    weights = {name: model.get_parameter(name).detach() ** 5 for name in WEIGHTS}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for _ in range(2):
        found = adaptive_cut(scope, **how)(weights, masks)
        expected = slow_adaptive(weights, masks, scope, **how)
        assert all(torch.equal(found[name], expected[name]) for name in WEIGHTS)
        assert any(not torch.equal(found[name], masks[name]) for name in WEIGHTS)
        masks = found


def test_weights_of_one_size_are_not_cut_and_spread_ones_at_most_by_beta():
    masks = {"w": torch.ones(1, 20, dtype=torch.bool)}
    assert torch.equal(adaptive_cut()({"w": torch.full((1, 20), -0.3)}, masks)["w"], masks["w"])
    single = torch.zeros(1, 20)
    single[0, 4] = 1.0
    assert int(adaptive_cut(beta=0.5)({"w": single}, masks)["w"].sum()) == 10
    assert adaptive_cut(beta=0.99)({"w": single}, masks)["w"].nonzero().tolist() == [[0, 4]]
    assert pq_index(single[masks["w"]]) == pytest.approx(1 - 1 / 20)


def test_masks_hold_against_momentum_and_decay_until_removed():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    loss_at(model, 0).backward()
    optimizer.step()
    masks = {"0.weight": torch.rand(6, 4) > 0.5}
    held = hold_masks(optimizer, model, masks)
    for step in range(3):
        assert bool((model[0].weight[~masks["0.weight"]] == 0).all())
        loss_at(model, step).backward()
        optimizer.step()
    assert bool((model[0].weight.grad[~masks["0.weight"]] == 0).all())
    assert bool((model[0].weight[masks["0.weight"]] != 0).all())
    held.remove()
    loss_at(model, 3).backward()
    optimizer.step()
    assert bool((model[0].weight != 0).all())


def test_random_masks_keep_as_many_of_each_tensor():
    masks = {"a": torch.rand(9, 5) > 0.3, "b": torch.rand(20) > 0.8}
    one, two = (random_masks(masks, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for name, mask in masks.items():
        assert int(one[name].sum()) == int(two[name].sum()) == int(mask.sum())
        assert one[name].shape == mask.shape
    assert not torch.equal(one["a"], two["a"])


def test_distance_and_angle_are_over_the_weights_left():
    one, other = mlp(), mlp()
    with torch.no_grad():
        other[0].weight.mul_(-2)
        other[2].weight.add_(100)
    masks = {"0.weight": torch.rand(6, 4) > 0.5}
    found = ticket_distance(one, other, masks)
    kept = one[0].weight[masks["0.weight"]]
    assert found.l2 == pytest.approx(3 * kept.norm().item(), rel=1e-6)
    assert found.angle == pytest.approx(180, abs=1e-4)
    assert ticket_distance(one, one, masks).l2 == 0


def test_training_that_lets_masked_weights_move_is_refused():
    def careless(model, masks):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)

    rounds = prune_in_rounds(mlp(), careless, share_cut(0.5), rounds=2)
    assert next(rounds).level == 0
    with pytest.raises(ValueError, match=r"train must hold the masks, got \d+ pruned weights of '"):
        next(rounds)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda w, m: {n: torch.ones_like(x) for n, x in m.items()},
            "cut must not bring pruned weights back",
        ),
        (lambda w, m: {"0.weight": m["0.weight"]}, r"cut must give masks for \['0.weight', '2"),
        (
            lambda w, m: {**m, "0.weight": m["0.weight"][0]},
            r"mask of '0.weight' must be a boolean tensor \(6, 4\)",
        ),
        (
            lambda w, m: {**m, "9.weight": m["0.weight"]},
            "masks must name parameters of the model, got '9.weight'",
        ),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cut, message):
    steps = iter([share_cut(0.5), cut])
    rounds = prune_in_rounds(mlp(), train, lambda w, m: next(steps)(w, m), rounds=3)
    assert next(rounds).density == 1 and next(rounds).density < 0.6
    with pytest.raises(ValueError, match=message):
        next(rounds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share_cut(1.0), r"share must be in \[0, 1\), got 1.0"),
        (lambda: adaptive_cut("neuron"), "scope must be one of layer, model, row; got 'neuron'"),
        (lambda: adaptive_cut(p=1.0), "p must be below q = 1, got 1"),
        (lambda: adaptive_cut(beta=1.0), r"beta must be in \[0, 1\), got 1.0"),
        (lambda: adaptive_cut(gamma=0.0), r"gamma must be in \(0, inf\), got 0.0"),
        (
            lambda: prune_in_rounds(mlp(), train, share_cut(), rounds=-1),
            "rounds must be an integer >= 0, got -1",
        ),
    ],
)
def test_bad_arguments_are_named_before_anything_is_trained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("case", sorted(set(REFUSED) - {"another class", "none", "text"}))
def test_what_is_not_understood_is_named_at_once(case):
    model, layers, message = REFUSED[case]
    with pytest.raises(ValueError, match=message.replace("must be a Linear", "must be a Linear or Conv1d")):
        prune_in_rounds(model, train, share_cut(), layers=layers)


def test_convolutions_of_every_number_of_axes_are_pruned():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.Conv2d(2, 2, 2), nn.Conv3d(2, 2, 2), nn.ConvTranspose2d(2, 2, 2)
    )
    *_, last = prune_in_rounds(model, lambda model, masks: None, share_cut(0.5), rounds=1)
    assert list(last.masks) == ["0.weight", "1.weight", "2.weight"]


def test_masks_hold_inside_wrappers():
    model, masks = mlp(), {"0.weight": torch.zeros(6, 4, dtype=torch.bool)}
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        with torch.no_grad():
            model[0].weight.fill_(1)
        hold_masks(torch.optim.SGD(model.parameters(), 0.1), wrapped, masks).remove()
        assert not model[0].weight.any()
        assert ticket_distance(wrapped, mlp(), {"2.weight": torch.ones(5, 6, dtype=torch.bool)}).l2 == 0


def test_what_cannot_train_cut_or_be_compared_is_refused():
    for given in ({"train": None, "cut": share_cut()}, {"train": lambda model, masks: None, "cut": 0.2}):
        with pytest.raises(ValueError, match=r"must be a function, got"):
            prune_in_rounds(mlp(), **given)
    with pytest.raises(ValueError, match="masks must map names of parameters to tensors, got list"):
        hold_masks(torch.optim.SGD(mlp().parameters()), mlp(), [])
    with pytest.raises(ValueError, match="weights must be a tensor, got list"):
        pq_index([1.0])

    def diverge(model, masks):
        model[0].weight.data[0, 0] = torch.nan

    rounds = prune_in_rounds(mlp(), diverge, share_cut(), rounds=1)
    assert next(rounds).level == 0
    with pytest.raises(ValueError, match=r"train must leave finite weights .* got others in '0\.weight'"):
        next(rounds)
    with pytest.raises(ValueError, match="masks must name at least one parameter, got none"):
        ticket_distance(mlp(), mlp(), {})
