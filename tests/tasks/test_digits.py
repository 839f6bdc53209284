"""The digits against scikit-learn's own arrays."""

import builtins

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from thalweg.tasks import handwritten_digits

PIXELS, DIGITS = load_digits(return_X_y=True)


def test_sizes_shapes_and_class_shares():
    split = handwritten_digits(train_size=1000)
    assert split.train[0].shape == (1000, 64) and split.test[0].shape == (797, 64)
    assert split.classes == 10 and split.train[1].dtype == torch.int64
    whole = np.bincount(DIGITS) / len(DIGITS)
    for _, targets in (split.train, split.test):
        assert np.abs(np.bincount(targets) - whole * len(targets)).max() <= 1


def test_global_standardisation_uses_training_pixels_only():
    split = handwritten_digits(shape="image")
    inputs = split.train[0].double()
    assert inputs.shape[1:] == (1, 8, 8)
    assert abs(inputs.mean()) < 1e-6 and abs(inputs.std(correction=0) - 1) < 1e-6
    assert 1e-5 < abs(split.test[0].double().mean()) < 0.1


def test_pixel_standardisation_is_per_pixel_and_zeroes_constant_pixels():
    inputs = handwritten_digits(standardise="pixel").train[0].double()
    spread = inputs.std(dim=0, correction=0)
    varies = spread > 0
    assert 0 < (~varies).sum() < 10
    assert (inputs[:, ~varies] == 0).all()
    torch.testing.assert_close(spread[varies], torch.ones_like(spread[varies]), atol=1e-6, rtol=0)
    assert inputs.mean(dim=0).abs().max() < 1e-6


def test_undoing_the_standardisation_gives_every_original_image_once():
    split = handwritten_digits(seed=5)
    inputs = torch.cat([split.train[0], split.test[0]]).double()
    targets = torch.cat([split.train[1], split.test[1]])
    low, high = inputs.min(), inputs.max()
    pixels = ((inputs - low) / (high - low) * 16).round().int()
    found = sorted((*row, target) for row, target in zip(pixels.tolist(), targets.tolist(), strict=True))
    assert found == sorted(
        (*row, target) for row, target in zip(PIXELS.astype(int).tolist(), DIGITS, strict=True)
    )


def test_noise_changes_the_asked_share_of_training_labels_and_nothing_else():
    clean, noisy = handwritten_digits(seed=2), handwritten_digits(seed=2, noisy_labels=0.2)
    assert (clean.train[1] != noisy.train[1]).sum() == 260
    assert torch.equal(clean.train[0], noisy.train[0])
    assert torch.equal(clean.test[0], noisy.test[0]) and torch.equal(clean.test[1], noisy.test[1])


def test_seed_repeats_and_changes_the_split():
    first, again, other = (handwritten_digits(seed=seed, noisy_labels=0.1) for seed in (0, 0, 1))
    assert torch.equal(first.train[0], again.train[0]) and torch.equal(first.train[1], again.train[1])
    assert not torch.equal(first.train[0], other.train[0])


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **keywords):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "thalweg\[tasks\]"'):
        handwritten_digits()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 9}, r"train_size must be in \[10, 1787\], got 9"),
        ({"train_size": 0.7}, r"train_size must be an integer >= 1, got 0.7"),
        ({"shape": "images"}, r"shape must be one of flat, image; got 'images'"),
        ({"standardise": "none"}, r"standardise must be one of global, pixel; got 'none'"),
        ({"noisy_labels": 1.5}, r"noisy_labels must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        handwritten_digits(**arguments)
