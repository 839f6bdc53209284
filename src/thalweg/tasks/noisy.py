"""Synthetic classification tasks whose labels are noisy, or change without end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as count_from

import torch
from torch import Tensor

from thalweg._core.checks import check_count, check_not_negative, check_number
from thalweg.tasks._seeds import generator
from thalweg.tasks.split import Split

__all__ = ["noisy_clusters", "noisy_teacher", "random_label_stream", "redraw_labels"]


def redraw_labels(labels: Tensor, fraction: float, classes: int, source: torch.Generator) -> Tensor:
    """Give ``fraction`` of int64 ``labels`` [n], rounded to whole examples, another class.

    The new class is uniform over the others. Since no label is redrawn to itself, exactly that share is
    wrong; compare with the original to find them.

    Raises:
        ValueError: if ``fraction`` is outside [0, 1] or ``classes`` is below 2.
    """
    check_number("fraction", fraction, 0, 1)
    check_count("classes", classes, low=2)
    chosen = torch.randperm(len(labels), generator=source)[: round(fraction * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=source)
    redrawn = labels.clone()
    redrawn[chosen] = (labels[chosen] + shift) % classes
    return redrawn


def noisy_clusters(
    samples: int = 1000,
    test_samples: int = 1000,
    features: int = 20,
    classes: int = 5,
    spread: float = 1.5,
    noisy_labels: float = 0.1,
    seed: int = 0,
) -> Split:
    """Gaussian clusters, of whose training labels some are wrong; the test labels are right.

    The centres are standard normal in each coordinate, the points scatter around them with standard deviation
    ``spread``. Inputs are float [n, features]. The same seed with ``noisy_labels=0`` gives the same inputs
    and the right labels.

    Raises:
        ValueError: for a bad argument.
    """
    check_count("samples", samples)
    check_count("test_samples", test_samples)
    check_count("features", features)
    check_count("classes", classes, low=2)
    check_not_negative("spread", spread)
    check_number("noisy_labels", noisy_labels, 0, 1)
    source = generator(seed)
    labels = torch.randint(0, classes, (samples + test_samples,), generator=source)
    centres = torch.randn(classes, features, generator=source)
    inputs = centres[labels] + spread * torch.randn(len(labels), features, generator=source)
    return Split(
        train=(inputs[:samples], redraw_labels(labels[:samples], noisy_labels, classes, source)),
        test=(inputs[samples:], labels[samples:]),
        classes=classes,
        name=f"{classes} clusters in {features}-d",
    )


def noisy_teacher(
    samples: int = 3072,
    test_samples: int = 512,
    features: int = 32,
    hidden: int = 32,
    classes: int = 10,
    noise: float = 0.3,
    seed: int = 0,
) -> Split:
    r"""Labels given by a random tanh network that sees its own logits through noise: small data for an MLP.

    .. math:: y = \arg\max_c \left( V \tanh(W x) + \sigma \varepsilon \right)_c, \qquad
        x, \varepsilon \sim \mathcal{N}(0, I)

    with standard normal :math:`W` and :math:`V` divided by the square root of their input width. Training and
    test labels are equally noisy, so the best test accuracy is below 1. The MLP 32-128-128-10 on this task is
    the small-scale stand-in for tuning optimizers and schedules.

    Args:
        samples, test_samples: number of training and test examples.
        features: dimension of x.
        hidden: width of the teacher.
        classes: number of classes.
        noise: :math:`\sigma`, in units of the logits; the teacher's logits have standard deviation about 0.6.
        seed: decides teacher, inputs and noise.

    Returns:
        A :class:`Split` with float inputs [n, features].

    Raises:
        ValueError: for a bad argument.
    """
    check_count("samples", samples)
    check_count("test_samples", test_samples)
    check_count("features", features)
    check_count("hidden", hidden)
    check_count("classes", classes, low=2)
    check_not_negative("noise", noise)
    source = generator(seed)
    first = torch.randn(features, hidden, generator=source) / features**0.5
    second = torch.randn(hidden, classes, generator=source) / hidden**0.5
    inputs = torch.randn(samples + test_samples, features, generator=source)
    logits = torch.tanh(inputs @ first) @ second
    labels = (logits + noise * torch.randn(logits.shape, generator=source)).argmax(dim=1)
    return Split(
        train=(inputs[:samples], labels[:samples]),
        test=(inputs[samples:], labels[samples:]),
        classes=classes,
        name=f"tanh teacher in {features}-d",
    )


def random_label_stream(
    tasks: int | None = 40, samples: int = 512, features: int = 32, classes: int = 10, seed: int = 0
) -> Iterator[Split]:
    """The same Gaussian inputs again and again, every task with fresh random labels: wears out plasticity.

    Used by the studies of dormant neurons (arXiv 2302.12902) and plasticity (arXiv 2303.01486).

    Args:
        tasks: how many tasks to give, or None for an endless stream.
        samples: number of inputs, fixed over the stream.
        features: dimension of an input.
        classes: number of classes.
        seed: decides inputs and labels; a longer stream begins with the shorter one.

    Yields:
        A :class:`Split` with float inputs [samples, features]. Random labels cannot generalise, so ``test``
        is ``train``: what is measured is how well the task was fitted.

    Raises:
        ValueError: for a bad argument, at the call.
    """
    if tasks is not None:
        check_count("tasks", tasks)
    check_count("samples", samples)
    check_count("features", features)
    check_count("classes", classes, low=2)
    source = generator(seed)
    inputs = torch.randn(samples, features, generator=source)

    def stream() -> Iterator[Split]:
        for number in count_from() if tasks is None else range(tasks):
            pair = (inputs, torch.randint(0, classes, (samples,), generator=source))
            yield Split(train=pair, test=pair, classes=classes, name=f"random labels {number}")

    return stream()
