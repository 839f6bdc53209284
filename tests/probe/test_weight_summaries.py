from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.probe import weight_statistics
from thalweg.tasks import GPT


def test_statistics_equal_those_of_numpy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    found = weight_statistics(model)
    matrices = [model[n].weight.detach().numpy() for n in (0, 2)]
    spectra = [np.linalg.svd(m, compute_uv=False) for m in matrices]
    l1, l2 = ([(np.abs(m) ** p).sum() ** (1 / p) for m in matrices] for p in (1, 2))
    expected = {
        "l1": np.mean(l1),
        "l2": np.mean(l2),
        "trace": np.mean([np.trace(m) for m in matrices]),
        "spectral norm": np.mean([s[0] for s in spectra]),
        "code sparsity": np.mean(np.divide(l1, l2)),
        "computational sparsity": np.mean(
            [np.trace(m) / s[0] for m, s in zip(matrices, spectra, strict=True)]
        ),
        "singular value mean": np.mean([s.mean() for s in spectra]),
        "singular value variance": np.mean([s.var(ddof=1) for s in spectra]),
    }
    for kind, tensors in (("weight", matrices), ("bias", [model[n].bias.detach().numpy() for n in (0, 2)])):
        flat = np.concatenate([t.reshape(-1) for t in tensors])
        middle = np.sort(flat)[(len(flat) - 1) // 2]
        expected |= {
            f"{kind} mean": flat.mean(),
            f"{kind} median": middle,
            f"{kind} variance": flat.var(ddof=1),
        }
    assert found.values == pytest.approx(expected, rel=1e-5)
    assert len(found.values) == 14
    assert found.per_layer["2.weight"]["trace"] == pytest.approx(np.trace(matrices[1]))


def test_a_convolution_is_read_by_pairs_of_channels_and_has_no_spectrum():
    kernel = torch.zeros(1, 2, 1, 2)
    kernel[0, 0] = torch.tensor([3.0, -4.0])
    found = weight_statistics({"weight": kernel})
    assert found.per_layer["weight"] == pytest.approx({"l1": 3.5, "l2": 2.5, "code sparsity": 0.7})
    assert set(found.values) == {
        "l1", "l2", "code sparsity", "weight mean", "weight median", "weight variance",
    }  # fmt: skip


def test_tiny_singular_values_count_as_zero():
    found = weight_statistics({"w": torch.diag(torch.tensor([2.0, 9e-6]))}).values
    assert found["singular value mean"] == 1 and found["singular value variance"] == 2


def test_a_transformer_is_read_with_tied_weights_once_and_gains_left_out():
    model = GPT(9, 4, layers=1, heads=2, width=8, tied=True, seed=0)
    found = weight_statistics(model)
    assert "head.weight" not in found.per_layer and "tokens.weight" in found.per_layer
    assert not any("norm" in name for name in found.per_layer)
    assert all(p.grad is None for p in model.parameters())


def test_weight_statistics_refuses():
    with pytest.raises(ValueError, match="a parameter with two dimensions or more, got none"):
        weight_statistics({"bias": torch.ones(3)})
    with pytest.raises(ValueError, match="'w' must be finite, got NaN or infinity"):
        weight_statistics({"w": torch.full((2, 2), torch.nan)})


def test_biases_of_recurrent_layers_are_biases():
    torch.manual_seed(0)
    layer = nn.LSTM(5, 7)
    vectors = torch.cat([layer.bias_ih_l0, layer.bias_hh_l0]).detach().double().numpy()
    found = weight_statistics(layer).values
    assert found["bias mean"] == pytest.approx(vectors.mean(), rel=1e-5)
    assert found["bias variance"] == pytest.approx(vectors.var(ddof=1), rel=1e-5)
