"""Opposing groups are found where they were planted, listed by example, and not found in plain progress."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import example_losses, opposing_gradients, opposing_signals, sharpness

N, PLANTED = 400, 10  # examples; of them outliers of each sign


class TwoLayers(nn.Module):
    def __init__(self, features, width=8):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        first = 0.05 * torch.randn(width, features, generator=source, dtype=torch.float64)
        second = 0.05 * torch.randn(width, generator=source, dtype=torch.float64)
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return x @ self.first.T @ self.second + self.bias


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square() / 2


def planted():
    """A linear target, and a feature that is large, of either sign, in a few examples (arXiv 2311.04163)."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=source, dtype=torch.float64)
    slope = torch.randn(6, generator=source, dtype=torch.float64)
    large = torch.zeros(N, 1, dtype=torch.float64)
    large[:PLANTED], large[PLANTED : 2 * PLANTED] = 12, -12
    return torch.cat([large, x], 1), 3 * x @ slope / slope.norm() + 0.5 * large[:, 0].abs()


def descended(rate, steps):
    batch, history = planted(), []
    model = TwoLayers(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = squares(model, batch)
        history.append(losses.detach())
        losses.mean().backward()
        optimizer.step()
    return model, batch, torch.stack(history)


@pytest.fixture(scope="module")
def at_the_edge():
    return descended(0.1, 150)


def test_planted_outliers_are_the_two_groups(at_the_edge):
    found = opposing_signals(at_the_edge[2], group=PLANTED)
    groups = {frozenset(found.rising), frozenset(found.falling)}
    assert groups == {frozenset(range(PLANTED)), frozenset(range(PLANTED, 2 * PLANTED))}
    assert found.correlation < -0.95
    assert found.share > 0.8 and found.found
    assert found.rise > 0 > found.fall
    assert max(found.times, key=lambda index: sum(found.times[index])) < 2 * PLANTED


def test_small_steps_show_no_opposition():
    found = opposing_signals(descended(0.01, 150)[2], group=PLANTED)
    assert found.correlation > 0 and not found.found


def test_groups_pull_the_weights_apart_along_the_sharpest_direction(at_the_edge):
    model, batch, history = at_the_edge
    found = opposing_signals(history, group=PLANTED)
    top = sharpness(lambda: squares(model, batch).mean(), model.parameters(), iterations=40, tol=1e-6)
    pulls = opposing_gradients(model, batch, squares, found.rising, found.falling, direction=top.vectors[0])
    assert pulls.cosine < -0.5
    first, second = pulls.projections
    assert first * second < 0
    # Against gradients of the two groups' mean losses.
    inputs, targets = batch
    gradients = []
    for members in (found.rising, found.falling):
        loss = squares(model, (inputs[list(members)], targets[list(members)])).mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    flat = [torch.cat([g.flatten() for g in one]) for one in gradients]
    assert pulls.cosine == pytest.approx(torch.cosine_similarity(*flat, dim=0).item())
    assert pulls.norms == pytest.approx([one.norm().item() for one in flat])
    assert first == pytest.approx((flat[0] @ top.vectors[0]).item())
    for name, a, b in zip(pulls.per_layer, *gradients, strict=True):
        expected = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
        assert pulls.per_layer[name] == pytest.approx(expected)


def test_every_number_by_hand():
    losses = torch.tensor(
        [
            [1.2, 1.0, 1.1, 9.0],
            [3.2, 0.5, 1.1, 9.0],  # the mean rises most in this step, the first
            [0.0, 3.0, 1.1, 8.9],
            [3.5, 0.0, 1.0, 9.0],
            [0.5, 2.5, 1.0, 9.0],
        ]
    )
    found = opposing_signals(losses)
    assert (found.rising, found.falling, found.step) == ((0,), (1,), 0)
    assert (found.rise, found.fall) == (2.0, -0.5)
    assert (found.share, found.top_loss_share) == (1.0, pytest.approx(2 / 2.5))
    changes = losses.double().diff(dim=0)
    assert found.changes.tolist() == changes[:, :2].tolist()
    others = torch.corrcoef(changes[1:, :2].T)[0, 1].item()
    assert found.correlation == pytest.approx(others)
    assert found.spikes == (0,) and found.times == {0: (1, 0), 1: (0, 1)}


def test_memberships_are_counted_over_all_spikes():
    torch.manual_seed(0)
    losses = 1 + 0.001 * torch.rand(60, 50).cumsum(0)
    losses[20, 3] += 5
    losses[40, 3] += 5
    losses[40, 4] -= 0.5
    found = opposing_signals(losses, group=1)
    assert found.spikes == (19, 39)
    assert found.times[3] == (2, 0) and found.times[4] == (0, 1)
    assert next(iter(found.times)) == 3


def test_too_few_steps_have_no_correlation():
    found = opposing_signals(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))
    assert math.isnan(found.correlation) and not found.found


def test_losses_for_it_are_recorded_in_evaluation_mode(at_the_edge):
    model, batch, history = at_the_edge
    noisy = nn.Sequential(nn.Dropout(0.5), model)
    torch.testing.assert_close(example_losses(noisy, batch, squares), squares(model, batch).detach())
    torch.testing.assert_close(
        example_losses(noisy, batch, squares, chunk_size=7), squares(model, batch).detach()
    )
    assert noisy.training and history.shape == (150, N)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: opposing_signals(torch.ones(3)), r"shape \(2 or more, 2 or more\), got \(3,\)"),
        (lambda: opposing_signals(torch.full((3, 4), torch.nan)), "losses must be finite"),
        (lambda: opposing_signals(torch.ones(3, 4), group=3), "at most half of the 4 examples, got 3"),
        (lambda: opposing_signals(torch.ones(3, 4), group=0), "group must be an integer >= 1, got 0"),
        (lambda: opposing_signals(torch.ones(3, 4), step=2), "step must be below the 2 steps, got 2"),
        (lambda: opposing_signals(torch.ones(3, 4), spike=0), "spike must be in"),
        (lambda: opposing_gradients(TwoLayers(7), planted(), squares, [], [1]), "rising must name at least"),
        (lambda: opposing_gradients(TwoLayers(7), planted(), squares, [0], [N]), r"in \[0, 400\), got 400"),
        (
            lambda: opposing_gradients(TwoLayers(7), planted(), squares, [0], [1], direction=torch.ones(3)),
            r"direction must have shape \(65,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_may_be_the_tensors_of_single_steps():
    table = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    found, expected = opposing_signals(list(table)), opposing_signals(table)
    assert found.rising == expected.rising and found.correlation == expected.correlation
    with pytest.raises(ValueError, match=r"rows of one length, got shapes \[\(11,\), \(12,\)\]"):
        opposing_signals([table[0], table[1, :11]])


def normalised(kept: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.BatchNorm1d(7, track_running_stats=kept), nn.Tanh(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.Linear(7, 3)).double()


@pytest.mark.parametrize("mode", ["batch statistics", "running statistics", "none kept"])
def test_gradients_of_groups_are_those_of_training_where_examples_are_normalised_together(mode):
    model, norm = normalised(mode != "none kept"), None
    model.train(mode == "batch statistics")
    norm = model[1]
    before = {name: b.clone() for name, b in model.named_buffers()}
    x = 2 * torch.randn(9, 5, dtype=torch.float64) + 1
    targets = torch.arange(9) % 3
    rising, falling = [0, 4, 7], [2, 3]

    def each(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    direction = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found = opposing_gradients(model, (x, targets), each, rising, falling, direction=direction)
    assert model.training == (mode == "batch statistics")
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())

    h = x @ model[0].weight.T + model[0].bias
    if mode == "running statistics":
        h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    else:
        h = (h - h.mean(0)) / (h.var(0, correction=0) + norm.eps).sqrt()
    logits = (h * norm.weight + norm.bias).tanh() @ model[4].weight.T + model[4].bias
    losses = logits.logsumexp(1) - logits[torch.arange(9), targets]
    groups = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(losses[some].mean(), model.parameters(), retain_graph=True)
            ]
        )
        for some in (rising, falling)
    ]
    assert found.norms == pytest.approx([g.norm().item() for g in groups], rel=1e-10)
    assert found.projections == pytest.approx([(g @ direction).item() for g in groups], rel=1e-9)
    cosine = (groups[0] @ groups[1] / groups[0].norm() / groups[1].norm()).item()
    assert found.cosine == pytest.approx(cosine, rel=1e-9)
