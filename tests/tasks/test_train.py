"""The training loop: against a loop written out by hand, and on tasks whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from thalweg.tasks import (
    CNN,
    GPT,
    MLP,
    accuracy,
    full_batch,
    handwritten_digits,
    library_text,
    minibatch,
    modular_arithmetic,
    next_character,
    noisy_clusters,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equal sums, and no contention between small kernels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def small_run(loop=minibatch, steps=20, lr=0.1, **arguments):
    model = MLP((20, 16, 5), norm="batch", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, loop(model, noisy_clusters(seed=0), optimizer, steps, evaluate_every=5, **arguments)


def test_full_batch_equals_the_loop_by_hand():
    split = noisy_clusters(200, 50)
    inputs, targets = split.train
    by_hand, model = MLP((20, 16, 5), seed=0), MLP((20, 16, 5), seed=0)
    velocity = [torch.zeros_like(parameter) for parameter in by_hand.parameters()]
    losses = []
    for step in range(10):
        loss = F.cross_entropy(by_hand(inputs), targets)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, v, g in zip(by_hand.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g)
                parameter.sub_(0.1 / (1 + step) * v)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    curve = full_batch(model, split, optimizer, 10, evaluate_every=1, schedule=schedule)
    torch.testing.assert_close(weights(model), weights(by_hand))
    assert curve.steps == tuple(range(11))
    assert curve.train_loss[:10] == pytest.approx(losses, rel=1e-5)
    assert curve.last.test_accuracy == accuracy(by_hand, *split.test)


def test_same_seed_gives_a_bit_equal_curve_and_model():
    (first, curve), (again, repeated), (_, other) = small_run(), small_run(), small_run(seed=1)
    assert curve == repeated and curve != other
    assert torch.equal(weights(first), weights(again))


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    small_run()
    assert torch.equal(before, torch.get_rng_state())


def test_minibatches_cover_every_example_once_a_pass_in_new_orders():
    seen = []
    _, curve = small_run(
        steps=30, batch_size=100, on_step=lambda step, loss, batch: seen.append(batch[0][:, 0])
    )
    passes = [torch.cat(seen[start : start + 10]) for start in (0, 10, 20)]
    everything = noisy_clusters(seed=0).train[0][:, 0].sort().values
    assert all(torch.equal(one.sort().values, everything) for one in passes)
    assert not torch.equal(passes[0], passes[1])
    assert curve.steps == (0, 5, 10, 15, 20, 25, 30)


def test_evaluation_changes_neither_batch_statistics_nor_modes():
    model = MLP((20, 16, 5), norm="batch", seed=0)
    model[1].eval()
    before = model[1].running_mean.clone()
    accuracy(model, *noisy_clusters().test)
    assert torch.equal(model[1].running_mean, before)
    assert model.training and model[0].training and not model[1].training


def test_stop_ends_the_run_at_the_first_row_that_asks():
    _, curve = small_run(steps=1000, stop=lambda row: row.train_accuracy > 0.6)
    assert curve.train_accuracy[-1] > 0.6 and max(curve.train_accuracy[:-1]) <= 0.6
    assert 0 < curve.last.step < 1000 and not curve.diverged
    assert curve.first_step(lambda row: row.train_accuracy > 0.6) == curve.last.step
    assert curve.first_step(lambda row: row.train_accuracy > 2) is None
    assert small_run(stop=lambda row: True)[1].steps == (0,)


@pytest.mark.parametrize("loop", [full_batch, minibatch])
def test_divergence_is_recorded_and_ends_the_run(loop):
    model = MLP((20, 16, 5), activation="identity", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e12)
    curve = loop(model, noisy_clusters(), optimizer, 1000, evaluate_every=7)
    assert curve.diverged and curve.last.step < 1000
    assert not math.isfinite(curve.last.train_loss)
    assert all(math.isfinite(loss) for loss in curve.train_loss[:-1])
    assert len(set(curve.steps)) == len(curve.steps)


def test_on_step_sees_each_gradient_once_before_the_update():
    steps = []

    def freeze(step, loss, batch):
        steps.append(step)
        assert loss.ndim == 0 and not loss.requires_grad
        for parameter in model.parameters():
            parameter.grad.zero_()

    model = MLP((20, 16, 5), seed=0)
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    minibatch(model, noisy_clusters(), optimizer, 8, on_step=freeze)
    assert steps == list(range(8))
    assert torch.equal(weights(model), before)


def test_closure_gives_the_same_run_for_an_optimizer_that_calls_it_once():
    calls = []
    (plain, curve), (closed, again) = (
        small_run(closure=closure, on_step=lambda step, loss, batch: calls.append(step))
        for closure in (False, True)
    )
    assert curve == again and torch.equal(weights(plain), weights(closed))
    assert calls == [*range(20), *range(20)]


def test_closure_serves_an_optimizer_that_calls_it_often():
    split = noisy_clusters(200, 50, noisy_labels=0)
    model = MLP((20, 5), seed=0)
    calls = []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20)
    on_step = lambda step, loss, batch: calls.append(step)  # noqa: E731
    curve = full_batch(model, split, optimizer, 5, closure=True, on_step=on_step)
    assert curve.last.train_loss < 0.01 and calls == [0, 1, 2, 3, 4]


def test_mlp_learns_digits():
    split = handwritten_digits()
    model = MLP((64, 128, 10), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    assert minibatch(model, split, optimizer, 300).last.test_accuracy > 0.95


def test_cnn_learns_digits():
    split = handwritten_digits(shape="image")
    model = CNN(width=16, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert minibatch(model, split, optimizer, 100).last.test_accuracy > 0.95


def test_gpt_beats_the_unigram_entropy_of_text():
    text = library_text()
    shares = torch.bincount(text.test.long(), minlength=97).double() / len(text.test)
    unigram = -torch.special.xlogy(shares, shares).sum().item()
    model = GPT(97, 32, layers=1, heads=2, width=64, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve = next_character(model, text, optimizer, 400, batch_size=16, context=32, evaluate_every=400)
    assert curve.test_loss[0] == pytest.approx(math.log(97), abs=0.2)
    assert curve.last.test_loss < unigram - 0.5


def test_gpt_memorises_modular_addition():
    split = modular_arithmetic(7, train_fraction=0.5, encoding="tokens")
    model = GPT(9, 4, layers=1, heads=2, width=32, seed=0, readout="last")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve = full_batch(
        model, split, optimizer, 300, evaluate_every=20, stop=lambda row: row.train_accuracy == 1
    )
    assert curve.last.train_accuracy == 1


def test_text_runs_are_judged_on_the_same_windows_whatever_the_seed():
    text = library_text(max_characters=20_000)
    rows = []
    for seed in (0, 0, 1):
        model = GPT(97, 8, layers=1, heads=2, width=16, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows.append(next_character(model, text, optimizer, 3, batch_size=4, context=8, seed=seed).rows)
    assert rows[0] == rows[1]
    assert rows[0][0] == rows[2][0] and rows[0][-1] != rows[2][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        ({"batch_size": 1001}, "batch_size must be at most the 1000 training examples, got 1001"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"seed": "a"}, "seed must be an integer >= 0, got 'a'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_run(**arguments)
