from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from thalweg.probe import (
    class_variability,
    collapse_path,
    collapsed_features,
    pulled_features,
    ridge_classifier,
)

K, WIDTH, N = 4, 10, 10
LABELS = torch.arange(K).repeat_interleave(N)


def start() -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randn(K * N, WIDTH, generator=source, dtype=torch.float64)


def loss(weight, features, labels, weight_decay, feature_decay, pull=0.0, given=0.0):
    """The model as it is written, with everything explicit."""
    n = len(labels) // len(labels.unique())
    classes = len(labels) // n
    targets = torch.nn.functional.one_hot(labels).double()
    fit = (features @ weight.T - targets).square().sum() / (2 * classes * n)
    decay = weight_decay / (2 * classes) * weight.square().sum()
    shrink = feature_decay / (2 * classes * n) * features.square().sum()
    return fit + decay + shrink + pull / (2 * classes * n) * (features - given).square().sum()


def test_the_ridge_classifier_has_no_gradient_left():
    features = start()
    weight = ridge_classifier(features, LABELS, weight_decay=0.05).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weight, features, LABELS, 0.05, 0.05), weight)
    assert gradient.abs().max() < 1e-15


def test_the_flow_is_that_of_the_reduced_loss_and_collapses_as_the_theorem_says():
    features, decay = start(), 0.05

    def reduced(h):
        gram = h.T @ h + N * decay * torch.eye(WIDTH, dtype=torch.float64)
        targets = torch.nn.functional.one_hot(LABELS).double()
        return loss(targets.T @ h @ torch.linalg.inv(gram), h, LABELS, decay, decay)

    one = collapse_path(features, LABELS, weight_decay=decay, feature_decay=decay, time=0.02, readings=1)
    gradient = torch.func.grad(reduced)(features)
    torch.testing.assert_close(one.features, features - 0.02 * K * N * gradient)
    path = collapse_path(features, LABELS, weight_decay=decay, feature_decay=decay, time=100)
    growth = [math.exp(2 * decay * t) for t in path.times]
    ratio = path.variability
    within = [g * value for g, value in zip(growth, path.within, strict=True)]
    between = [g * value for g, value in zip(growth, path.between, strict=True)]
    assert all(after < before for before, after in pairwise(ratio))
    assert all(after < before for before, after in pairwise(within))
    assert all(after > before for before, after in pairwise(between))
    assert ratio[0] == pytest.approx(class_variability(features, LABELS)) and ratio[-1] < 1e-3 * ratio[0]
    assert path.times[-1] == pytest.approx(100) and len(path.times) == 51


def test_the_flow_ends_in_the_predicted_orthogonal_frame():
    weight_decay, feature_decay = 0.08, 0.04
    predicted = collapsed_features(weight_decay=weight_decay, feature_decay=feature_decay)
    path = collapse_path(
        start(), LABELS, weight_decay=weight_decay, feature_decay=feature_decay, time=300, step=0.1
    )
    means = path.features.view(K, N, WIDTH).mean(1)
    frame = predicted.squared_norm * torch.eye(K, dtype=torch.float64)
    torch.testing.assert_close(means @ means.T, frame, atol=1e-5, rtol=0)
    weight = ridge_classifier(path.features, LABELS, weight_decay=weight_decay)
    torch.testing.assert_close(weight, predicted.alignment * means, atol=1e-4, rtol=0)
    assert predicted.strength == pytest.approx(math.sqrt(0.0032))


def test_too_much_decay_leaves_nothing():
    predicted = collapsed_features(weight_decay=2.0, feature_decay=1.0, pull=10.0)
    assert predicted.squared_norm == 0 == predicted.between
    path = collapse_path(start(), LABELS, weight_decay=2.0, feature_decay=1.0, time=40, step=0.05)
    assert path.features.abs().max() < 1e-6


def test_pulled_features_are_stationary_and_from_a_large_pull_on_less_variable():
    features = start()
    for pull in (5.0, 50.0):
        h = pulled_features(
            features, LABELS, pull=pull, weight_decay=0.05, feature_decay=0.05
        ).requires_grad_()
        weight = ridge_classifier(h, LABELS, weight_decay=0.05)
        (gradient,) = torch.autograd.grad(loss(weight, h, LABELS, 0.05, 0.05, pull, features), h)
        assert gradient.abs().max() < 1e-8
        assert class_variability(h, LABELS) < class_variability(features, LABELS)


@pytest.mark.parametrize(("weight_decay", "feature_decay"), [(0.05, 0.02), (0.02, 0.08)])
def test_predicted_response_equals_the_explicit_jacobian_at_collapse(weight_decay, feature_decay):
    classes, n, width, pull = 3, 2, 5, 500.0
    predicted = collapsed_features(weight_decay=weight_decay, feature_decay=feature_decay, pull=pull)
    frame = torch.linalg.qr(
        torch.randn(width, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q.T
    labels = torch.arange(classes).repeat_interleave(n)
    collapsed = (math.sqrt(predicted.squared_norm) * frame)[labels]
    targets = torch.nn.functional.one_hot(labels).double()

    def reduced(flat):
        h = flat.view(-1, width)
        gram = h.T @ h + n * weight_decay * torch.eye(width, dtype=torch.float64)
        return loss(targets.T @ h @ torch.linalg.inv(gram), h, labels, weight_decay, feature_decay)

    assert torch.func.grad(reduced)(collapsed.flatten()).abs().max() < 1e-15
    hessian = classes * n * torch.func.hessian(reduced)(collapsed.flatten())
    response = torch.linalg.inv(torch.eye(len(hessian)) + hessian / pull)
    response = response.view(classes * n, width, classes * n, width)
    apart = torch.zeros(classes * n, dtype=torch.float64)
    apart[0], apart[1] = 2**-0.5, -(2**-0.5)
    within = torch.linalg.svdvals(torch.einsum("i,iajb,j->ab", apart, response, apart))
    assert within[0].item() == pytest.approx(predicted.within[1], rel=1e-12)
    assert within[-1].item() == pytest.approx(predicted.within[0], rel=1e-12)
    assert 1 - predicted.alignment / pull < predicted.within[0]
    means = torch.zeros(2, classes * n, dtype=torch.float64)
    means[0, :n] = means[1, n : 2 * n] = n**-0.5
    between = torch.linalg.svdvals(torch.einsum("i,iajb,j->ab", means[0], response, means[1]))
    assert between[0].item() == pytest.approx(predicted.between, rel=2e-3)
    assert between[1].item() < 1e-12


def test_feature_decay_and_not_weight_decay_speeds_collapse():
    base = collapsed_features(weight_decay=0.05, feature_decay=0.05, pull=10.0)
    features = collapsed_features(weight_decay=0.05, feature_decay=0.1, pull=10.0)
    weights = collapsed_features(weight_decay=0.1, feature_decay=0.05, pull=10.0)
    assert features.within[0] < base.within[0] < weights.within[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.arange(40) % 3}, "equally often, got counts"),
        ({"weight_decay": 0}, "weight_decay must be in"),
        ({"features": torch.ones(40, 2, 2)}, "features must be a matrix"),
        ({"time": 1e5, "step": 50.0}, "step must be short enough"),
    ],
)
def test_collapse_path_refuses(arguments, message):
    given = {"features": start(), "labels": LABELS, "weight_decay": 0.1, "feature_decay": 0.1, "time": 1.0}
    given.update(arguments)
    with pytest.raises(ValueError, match=message):
        collapse_path(given.pop("features"), given.pop("labels"), **given)
    with pytest.raises(ValueError, match="iterations must suffice"):
        pulled_features(start(), LABELS, pull=0.1, weight_decay=0.1, feature_decay=0.1, iterations=1)
