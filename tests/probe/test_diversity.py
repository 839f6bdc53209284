from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.probe import feature_diversity


def pairs(features: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Mean cosine over all, same-class and different-class pairs, one pair at a time."""
    whole, same, different = [], [], []
    for i in range(len(features)):
        for j in range(i):
            cosine = torch.dot(features[i], features[j]) / (features[i].norm() * features[j].norm())
            if not bool(cosine.isfinite()):
                continue
            whole.append(cosine.item())
            (same if labels[i] == labels[j] else different).append(cosine.item())
    return float(np.mean(whole)), float(np.mean(same)), float(np.mean(different))


@pytest.mark.parametrize(("rows", "columns"), [(40, 6), (7, 30)])
def test_cosines_and_correlations_equal_the_explicit_ones(rows, columns):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, columns), nn.ReLU()).double()
    x, labels = torch.randn(rows, 5, dtype=torch.float64), torch.arange(rows) % 3
    features = model(x).detach()
    found = feature_diversity(model, x, labels)["1"]
    whole, same, different = pairs(features, labels)
    assert found.example_cosine == pytest.approx(whole, abs=1e-12)
    assert found.same_class == pytest.approx(same, abs=1e-12)
    assert found.different_class == pytest.approx(different, abs=1e-12)
    moving = features[:, features.std(0) > 0].numpy()
    correlation = np.corrcoef(moving.T)
    off = correlation[~np.eye(len(correlation), dtype=bool)]
    assert found.unit_correlation == pytest.approx(float(np.sqrt((off**2).mean())), abs=1e-12)
    assert found.constant == pytest.approx(1 - moving.shape[1] / columns)
    assert (found.rows, found.columns) == (rows, columns)


def test_copies_of_one_unit_are_wholly_correlated_and_independent_ones_are_not():
    torch.manual_seed(0)
    x = torch.randn(4000, 1)
    copies = feature_diversity(nn.Identity(), x * torch.tensor([1.0, -2.0, 3.0]), layers=[""])[""]
    assert copies.unit_correlation == pytest.approx(1)
    free = feature_diversity(nn.Identity(), torch.randn(4000, 3), layers=[""])[""]
    assert free.unit_correlation < 0.05 and abs(free.example_cosine) < 0.01


def test_silent_rows_and_constant_units_belong_to_no_pair():
    features = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = feature_diversity(nn.Identity(), features, torch.tensor([0, 0, 1]), layers=[""])[""]
    assert found.example_cosine == pytest.approx(2**-0.5) == found.different_class
    assert found.same_class is None
    assert found.constant == pytest.approx(1 / 3) and found.unit_correlation == pytest.approx(0.5)


def test_without_labels_there_are_no_classes():
    found = feature_diversity(nn.Tanh(), torch.eye(3))[""]
    assert found.same_class is None and found.different_class is None
    assert found.example_cosine == 0 and found.unit_correlation == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, dtype=torch.long), "labels must be 3, one a row of layer '', got 4"),
        (torch.tensor([0, 1, -1]), "labels must be classes"),
        (torch.zeros(3), "labels must be classes, integers of at least 0, got torch.float32"),
    ],
)
def test_labels_must_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        feature_diversity(nn.Tanh(), torch.ones(3, 2), labels)
