from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import effective_rank, feature_rank, feature_rank_of, feature_ranks, stable_rank


def with_singular_values(values: list[float], rows: int = 12) -> torch.Tensor:
    torch.manual_seed(0)
    n = len(values)
    left = torch.linalg.qr(torch.randn(rows, n, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


@pytest.mark.parametrize("rank", [effective_rank, stable_rank, feature_rank])
def test_identity_has_full_rank_and_an_outer_product_has_rank_one(rank):
    assert rank(torch.eye(7)) == pytest.approx(7)
    outer = torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 4))
    assert rank(outer) == pytest.approx(1, rel=1e-3)
    assert rank(torch.zeros(3, 2)) == 0


def test_ranks_of_known_singular_values():
    values = [4.0, 2.0, 1.0, 0.05, 0.03]
    features = with_singular_values(values)
    share = [v / sum(values) for v in values]
    assert effective_rank(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)))
    assert stable_rank(features) == pytest.approx(sum(v**2 for v in values) / 16)
    assert feature_rank(features) == 4
    assert feature_rank(features, threshold=0.3) == 2


def test_ranks_do_not_depend_on_scale_or_orientation():
    features = with_singular_values([3.0, 2.0, 0.5])
    for rank in (effective_rank, stable_rank, feature_rank):
        assert rank(features.T) == pytest.approx(rank(1e-20 * features)) == pytest.approx(rank(features))


def test_ranks_of_a_layer_are_those_of_its_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    x = torch.randn(30, 6)
    hidden = model[0](x).detach()
    found = feature_rank_of(model, x, layer="0")
    assert (found.rows, found.columns) == (30, 8)
    assert found.feature_rank == torch.linalg.matrix_rank(hidden - hidden.mean(0)).item() + 1
    assert found.effective_rank == pytest.approx(effective_rank(hidden))
    assert found.stable_rank == pytest.approx(stable_rank(hidden))


def test_sequences_count_positions_and_images_are_flattened():
    sequences = feature_rank_of(nn.Sequential(nn.Linear(4, 5)), torch.randn(3, 7, 4), layer="0")
    assert (sequences.rows, sequences.columns) == (21, 5)
    images = feature_rank_of(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(4, 1, 5, 5), layer="0")
    assert (images.rows, images.columns) == (4, 18)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(3), r"must be a matrix \(examples, features\), got shape \(3,\)"),
        (torch.ones(0, 3), "must be a matrix"),
        (torch.tensor([[1.0, math.nan]]), "features must be finite"),
        (torch.tensor([[1.0, math.inf]]), "features must be finite"),
    ],
)
@pytest.mark.parametrize("rank", [effective_rank, stable_rank, feature_rank])
def test_ranks_refuse(rank, features, message):
    with pytest.raises(ValueError, match=message):
        rank(features)


def test_layer_and_threshold_are_checked():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got 'first'"):
        feature_rank_of(model, torch.ones(2, 2), layer="first")
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        feature_rank(torch.eye(2), threshold=1)
    with pytest.raises(ValueError, match=r"must return \(batch, features, ...\), got shape \(2,\)"):
        feature_rank_of(model, torch.ones(2), layer="0")


def test_all_activations_are_ranked_in_one_run():
    torch.manual_seed(0)
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 5), act, nn.Linear(5, 2))
    x = torch.randn(30, 6)
    found = feature_ranks(model, x)
    assert list(found) == ["1", "1[1]"]
    second = act(model[2](act(model[0](x)))).detach()
    assert found["1[1]"].effective_rank == pytest.approx(effective_rank(second))
    assert found["1[1]"] == feature_rank_of(model, x, layer="1")
