"""The synthetic tasks against the distributions they promise."""

from itertools import islice, pairwise

import pytest
import torch

from thalweg.tasks import noisy_clusters, noisy_teacher, random_label_stream, redraw_labels


def test_redrawn_labels_are_wrong_and_uniform_over_the_other_classes():
    labels = torch.zeros(40_000, dtype=torch.int64)
    redrawn = redraw_labels(labels, 0.5, 5, torch.Generator().manual_seed(0))
    counts = torch.bincount(redrawn, minlength=5)
    assert counts[0] == 20_000
    # Each other class is binomial(20000, 1/4), standard deviation 61.
    assert (counts[1:] - 5000).abs().max() < 5 * 61
    assert (labels == 0).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_redrawing_none_or_all(fraction):
    labels = torch.arange(100) % 10
    wrong = redraw_labels(labels, fraction, 10, torch.Generator().manual_seed(0)) != labels
    assert wrong.sum() == 100 * fraction


def test_clusters_have_the_asked_size_spread_and_noise():
    clean, noisy = noisy_clusters(4000, 100, noisy_labels=0), noisy_clusters(4000, 100)
    inputs, labels = clean.train
    assert inputs.shape == (4000, 20) and clean.test[0].shape == (100, 20)
    residual = torch.cat([inputs[labels == c] - inputs[labels == c].mean(dim=0) for c in range(5)])
    assert abs(residual.std().item() - 1.5) < 0.02
    assert torch.equal(noisy.train[0], inputs) and torch.equal(noisy.test[1], clean.test[1])
    assert (noisy.train[1] != labels).sum() == 400


def test_cluster_centres_are_standard_normal():
    inputs, labels = noisy_clusters(2000, 1, features=50, classes=20, spread=0.0, noisy_labels=0).train
    centres = torch.stack([inputs[labels == c][0] for c in range(20)])
    assert abs(centres.std().item() - 1) < 5 / (2 * 1000) ** 0.5


def test_noiseless_teacher_is_a_function_that_noise_blurs():
    clean, noisy = noisy_teacher(20_000, noise=0.0), noisy_teacher(20_000)
    assert clean.train[0].shape == (20_000, 32) and len(clean.test[1]) == 512
    assert torch.equal(clean.train[0], noisy.train[0])
    agreement = (clean.train[1] == noisy.train[1]).double().mean()
    assert 0.3 < agreement < 0.9
    # A linear fit recovers much of a teacher that depends on the inputs, and nothing of one that does not.
    inputs, labels = clean.train
    fit = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(labels, 10).float()).solution
    assert ((clean.test[0] @ fit).argmax(dim=1) == clean.test[1]).double().mean() > 0.5


def test_default_teacher_gives_the_small_mlp_task():
    split = noisy_teacher()
    assert split.train[0].shape == (3072, 32) and split.test[0].shape == (512, 32) and split.classes == 10
    assert torch.bincount(split.train[1], minlength=10).min() > 50


def test_stream_keeps_the_inputs_and_redraws_the_labels():
    tasks = list(random_label_stream(tasks=3))
    assert len(tasks) == 3 and len(list(random_label_stream())) == 40
    assert tasks[0].train[0].shape == (512, 32)
    assert all(torch.equal(task.train[0], tasks[0].train[0]) for task in tasks)
    for before, after in pairwise(tasks):
        # Fresh labels agree by chance: binomial(512, 1/10), standard deviation 6.8.
        assert abs((before.train[1] == after.train[1]).sum().item() - 51) < 5 * 6.8


def test_endless_stream_begins_with_the_finite_one():
    endless = islice(random_label_stream(tasks=None, seed=1), 3)
    for one, other in zip(endless, random_label_stream(tasks=3, seed=1), strict=True):
        assert torch.equal(one.train[0], other.train[0]) and torch.equal(one.train[1], other.train[1])


@pytest.mark.parametrize("task", [noisy_clusters, noisy_teacher])
def test_seed_repeats_the_data(task):
    first, again, other = task(seed=4), task(seed=4), task(seed=5)
    for one, two in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(first.train[0], other.train[0])


def test_split_moves_inputs_only_to_another_precision():
    split = noisy_clusters(20, 10).to(dtype=torch.float64)
    assert split.train[0].dtype == torch.float64 and split.test[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noisy_clusters(samples=0), "samples must be an integer >= 1, got 0"),
        (lambda: noisy_clusters(spread=-1), r"spread must be in \[0, inf\), got -1"),
        (lambda: noisy_clusters(noisy_labels=2), r"noisy_labels must be in \[0, 1\], got 2"),
        (lambda: noisy_teacher(classes=1), "classes must be an integer >= 2, got 1"),
        (lambda: noisy_teacher(noise=float("nan")), r"noise must be in \[0, inf\), got nan"),
        (lambda: random_label_stream(tasks=-1), "tasks must be an integer >= 1, got -1"),
    ],
)
def test_bad_arguments_are_named_at_the_call(call, message):
    with pytest.raises(ValueError, match=message):
        call()
