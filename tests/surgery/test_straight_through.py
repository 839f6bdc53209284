"""Straight-through matching against a transcription of the descent; what it keeps, reaches and refuses."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace

import pytest
import torch
from architectures import example, made, shuffled
from scipy.optimize import linear_sum_assignment
from torch import nn

from thalweg.probe import loss_line
from thalweg.surgery import align, interpolate
from thalweg.surgery._axis_run import movable, run, trace
from thalweg.surgery._straight_through import composed
from thalweg.surgery._symmetry import symmetry
from thalweg.tasks import MLP, cross_entropy, handwritten_digits


def loss_fn(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def square_loss(model, batch):
    answer = run(model, batch)
    return (answer - torch.linspace(-1, 1, answer.numel()).view_as(answer)).square().mean()


def drawn(n=30, inputs=6, classes=4):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(n, inputs, generator=source, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=source)


def straight(model, reference, inputs, **options):
    return align(model, reference, inputs, method="straight_through", **options)


def transcribed(model, reference, batch, steps, lr):
    """The card's loop for one hidden layer: each step's order and its loss halfway, in plain float64."""
    a, b = ([p.detach().clone() for p in one.parameters()] for one in (reference, model))
    free, speed = [p.clone() for p in a], [torch.zeros_like(p) for p in a]
    tried = []
    for _ in range(steps):
        value = free[0] @ b[0].T + torch.outer(free[1], b[1]) + free[2].T @ b[2]
        order = linear_sum_assignment(value.numpy(), maximize=True)[1]
        moved = [b[0][order], b[1][order], b[2][:, order], b[3]]
        middle = [((p + q) / 2).requires_grad_() for p, q in zip(a, moved, strict=True)]
        hidden = torch.relu(batch[0] @ middle[0].T + middle[1])
        loss = cross_entropy(hidden @ middle[2].T + middle[3], batch[1])
        tried.append((loss.item(), order.tolist()))
        for p, v, slope in zip(free, speed, torch.autograd.grad(loss, middle), strict=True):
            v.mul_(0.9).add_(slope / 2)
            p -= lr * v
    return tried


def test_the_descent_is_the_published_one():
    model, reference = (MLP((6, 20, 4), seed=seed).double() for seed in (1, 0))
    batch = drawn()
    tried = transcribed(model, reference, batch, 40, 3.0)
    lowest = min(tried)
    assert tried[0][1] != lowest[1] != tried[-1][1]  # neither plain matching nor the last one
    new, report = straight(model, reference, batch[0], batches=[batch], loss_fn=loss_fn, steps=40, lr=3.0)
    assert report.permutations["0"].tolist() == lowest[1]
    middle, _ = interpolate(reference, new, 0.5)
    assert loss_fn(middle, batch).item() == pytest.approx(lowest[0], rel=1e-12)
    assert report.sweeps >= 40


@pytest.mark.parametrize("name", ["cnn", "resnet", "gpt", "grouped queries", "lstm", "a layer run twice"])
def test_the_function_is_kept_and_both_models_stay_as_they_are(name):
    model, reference, batch = made(name, 1), made(name, 0), example(name)
    before = [copy.deepcopy(one.state_dict()) for one in (model, reference)]
    reference.get_parameter(next(iter(dict(reference.named_parameters())))).requires_grad_(False)
    with torch.no_grad():
        new, report = straight(model, reference, batch, batches=[batch], loss_fn=square_loss, steps=5, lr=1.0)
    expected = run(model.eval(), batch)
    scale = expected.abs().max().item()
    torch.testing.assert_close(run(new.eval(), batch), expected, rtol=0, atol=1e-5 * scale)
    assert report.error < 1e-5
    for one, values in zip((model, reference), before, strict=True):
        assert all(torch.equal(value, values[key]) for key, value in one.state_dict().items())
        assert all(p.grad is None for p in one.parameters())
    assert reference.training and [p.requires_grad for p in reference.parameters()].count(False) == 1


@pytest.mark.parametrize("name", ["cnn", "gpt", "lstm"])
def test_a_planted_permutation_is_found(name):
    reference = made(name, 0)
    model = copy.deepcopy(reference)
    found = symmetry(trace(model, example(name))[0])
    with torch.no_grad():
        found.apply(movable(model), shuffled(found))
    options = {"batches": [example(name)], "loss_fn": square_loss, "steps": 3, "restarts": 5}
    report = straight(model, reference, example(name), **options)[1]
    assert report.distance[1] < 1e-5 * report.distance[0]


@pytest.mark.parametrize("name", ["mlp", "gpt", "grouped queries"])
def test_two_orders_one_after_the_other_are_the_composed_one(name):
    model = made(name, 0)
    found = symmetry(trace(model, example(name))[0])
    first, second = shuffled(found, 1), shuffled(found, 2)
    twice, once = ({k: v.detach().clone() for k, v in movable(model).items()} for _ in range(2))
    found.apply(twice, first)
    found.apply(twice, second)
    found.apply(once, composed(found, first, second))
    assert all(torch.equal(twice[key], once[key]) for key in once)
    assert not all(torch.equal(value, once[key]) for key, value in movable(model).items())


@pytest.fixture(scope="module")
def digits():
    return handwritten_digits(1300, seed=0)


@pytest.fixture(scope="module")
def exact(digits):
    """In float64: 150 steps in float32 end elsewhere on another processor."""
    train, test = ((inputs.double(), labels) for inputs, labels in (digits.train, digits.test))
    return replace(digits, train=train, test=test)


def trained(seed, split):
    model = MLP((64, *[48] * 5, 10), seed=seed).to(split.train[0].dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss_fn(model, split.train).backward()
        optimizer.step()
    return model


def test_the_barrier_of_deep_narrow_networks_is_below_weight_matchings(exact):
    barriers = {"straight": [], "weights": []}
    for seed in range(3):
        model, reference = (trained(10 * seed + which, exact) for which in (1, 2))
        ends = {
            "weights": align(model, reference, exact.train[0][:4])[0],
            "straight": straight(
                model, reference, exact.train[0][:4], batches=[exact.train], loss_fn=loss_fn, steps=60
            )[0],
        }
        for name, end in ends.items():
            path = loss_line(lambda m: loss_fn(m, exact.test), reference, reference, end, points=11)
            barriers[name].append(path.barrier)
    assert statistics.median(barriers["straight"]) < statistics.median(barriers["weights"])
    assert all(one < other for one, other in zip(*barriers.values(), strict=True))


def test_a_batch_that_is_easy_by_itself_does_not_decide():
    """The first batch leads to a worse order, for which the second has the lowest loss in any case."""
    model, reference = (MLP((6, 20, 4), seed=seed).double() for seed in (1, 0))
    batch = drawn()

    def uneven(model, which):
        return -loss_fn(model, batch) if which == "first" else 3 * loss_fn(model, batch) - 100

    options = {"loss_fn": uneven, "steps": 2, "lr": 30.0}
    worse = straight(model, reference, batch[0], batches=["first"], **options)[1].permutations["0"]
    found = straight(model, reference, batch[0], batches=["first", "second"], **options)[1].permutations["0"]
    plain = align(model, reference, batch[0])[1].permutations["0"]
    assert torch.equal(found, plain) and not torch.equal(worse, plain)


def test_more_orders_are_tried_and_the_lowest_loss_counts(digits):
    model, reference = trained(1, digits), trained(2, digits)
    options = {"batches": [digits.train], "loss_fn": loss_fn, "steps": 2}

    def halfway(end):
        return loss_fn(interpolate(reference, end, 0.5)[0], digits.train).item()

    losses = [
        halfway(straight(model, reference, digits.train[0][:2], restarts=restarts, **options)[0])
        for restarts in (1, 8)
    ]
    assert losses[1] < losses[0]


def test_hooks_do_not_run_dropout_is_off_and_batches_are_normalised_by_themselves():
    calls, seen = [], []

    class Spied(nn.Sequential):
        def forward(self, x):
            seen.append([(m.training, isinstance(m, nn.BatchNorm1d)) for m in self])
            return super().forward(x)

    def net(seed):
        torch.manual_seed(seed)
        made = Spied(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)).double()
        made[0].register_forward_hook(lambda *_: calls.append(1))
        return made

    model, reference, batch = net(1), net(0), drawn()
    means = reference[1].running_mean.clone()
    straight(model, reference, batch[0], batches=[batch], loss_fn=loss_fn, steps=2)
    assert not calls and torch.equal(reference[1].running_mean, means)
    assert [all(on is norm for on, norm in modules) for modules in seen].count(True) >= 2


def net(seed=0):
    return MLP((6, 8, 4), seed=seed).double()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_fn": None}, "loss_fn must be a function for straight_through and else None, got None"),
        ({"method": "weights"}, "loss_fn must be a function for straight_through and else None, got <func"),
        ({"batches": None}, "batches must be a list or loader of batches, got NoneType"),
        ({"batches": []}, "batches must hold at least one batch, got none"),
        ({"batches": drawn()[0]}, "batches must be a list or loader of batches, got Tensor"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"lr": 0}, r"lr must be in \(0, inf\), got 0"),
        ({"loss_fn": lambda model, batch: 3.0}, r"loss_fn must return one finite number .*, got 3\.0"),
        (
            {"loss_fn": lambda model, batch: loss_fn(model, batch) / 0},
            "loss_fn must return one finite number as a tensor, got tensor.inf",
        ),
        ({"loss_fn": lambda model, batch: torch.ones(())}, "a loss that depends on the model's weights"),
        ({"reference": nn.Linear(6, 4)}, "reference must have a weight '0.weight' like model"),
    ],
)
def test_what_cannot_be_descended_on_is_refused_and_nothing_changes(options, said):
    model = net(1)
    before = copy.deepcopy(model.state_dict())
    given = {
        "reference": net(),
        "method": "straight_through",
        "batches": [drawn()],
        "loss_fn": loss_fn,
    } | options
    with pytest.raises(ValueError, match=said):
        align(model, given.pop("reference"), drawn()[0], **given)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
