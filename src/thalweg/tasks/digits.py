"""Handwritten digits that ship with scikit-learn: 1797 grey images of 8 x 8 pixels, ten classes."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_choice, check_count, check_number
from thalweg.tasks._seeds import generator
from thalweg.tasks.noisy import redraw_labels
from thalweg.tasks.split import Split

__all__ = ["handwritten_digits"]

IMAGES = 1797


def handwritten_digits(
    train_size: int = 1300,
    shape: str = "flat",
    standardise: str = "global",
    noisy_labels: float = 0.0,
    seed: int = 0,
) -> Split:
    """The UCI handwritten digits, standardised with the statistics of the training part.

    Args:
        train_size: number of training images, at least 10 and at most 1787; the rest are test images. Both
            parts keep the class shares.
        shape: ``"flat"``, float [n, 64], or ``"image"``, float [n, 1, 8, 8].
        standardise: ``"global"`` subtracts one mean and divides by one standard deviation over all training
            pixels; ``"pixel"`` does so for each pixel, and pixels that are constant in training become 0.
        noisy_labels: share of the *training* labels replaced by another class (see :func:`redraw_labels`).
        seed: decides the split and then the noise, so the same seed with ``noisy_labels=0`` gives the right
            labels.

    Returns:
        A :class:`Split` with 10 classes.

    Raises:
        ValueError: for a bad argument.
        ImportError: if scikit-learn is missing.
    """
    check_count("train_size", train_size)
    check_number("train_size", train_size, 10, IMAGES - 10)
    check_choice("shape", shape, ("flat", "image"))
    check_choice("standardise", standardise, ("global", "pixel"))
    check_number("noisy_labels", noisy_labels, 0, 1)
    source = generator(seed)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as missing:
        raise ImportError('the digits need scikit-learn: pip install "thalweg[tasks]"') from missing

    pixels, digits = load_digits(return_X_y=True)
    parts = train_test_split(range(IMAGES), train_size=train_size, stratify=digits, random_state=seed)
    train, test = (torch.tensor(part) for part in parts)
    inputs = torch.tensor(pixels, dtype=torch.float64)
    targets = torch.tensor(digits, dtype=torch.int64)

    seen = inputs[train]
    if standardise == "global":
        inputs = (inputs - seen.mean()) / seen.std(correction=0)
    else:
        spread = seen.std(dim=0, correction=0)
        inputs = torch.where(spread > 0, (inputs - seen.mean(dim=0)) / spread.where(spread > 0, 1.0), 0.0)
    inputs = inputs.to(torch.get_default_dtype())
    if shape == "image":
        inputs = inputs.view(-1, 1, 8, 8)
    return Split(
        train=(inputs[train], redraw_labels(targets[train], noisy_labels, 10, source)),
        test=(inputs[test], targets[test]),
        classes=10,
        name="handwritten digits",
    )
