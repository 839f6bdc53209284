from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import gradient_norm_tensor, gradient_norms


def parameter(gradient: torch.Tensor | None, shape: tuple[int, ...] = (2,)) -> nn.Parameter:
    if gradient is None:
        return nn.Parameter(torch.zeros(shape))
    p = nn.Parameter(torch.zeros_like(gradient) if not gradient.is_sparse else torch.zeros(gradient.shape))
    p.grad = gradient
    return p


def test_norms_are_euclidean_by_name_and_in_total():
    params = {"a": parameter(torch.tensor([3.0, 4.0])), "b": parameter(torch.tensor([[12.0]]))}
    found = gradient_norms(params)
    assert found.per_layer == {"a": 5, "b": 12}
    assert found.total == 13
    assert found.missing == found.nonfinite == ()


def test_total_equals_what_gradient_clipping_measures():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    model(torch.randn(4, 5)).square().mean().backward()
    expected = nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()
    assert gradient_norms(model).total == pytest.approx(expected, rel=1e-6)
    pairs = gradient_norms(model.named_parameters())
    assert pairs == gradient_norms(model)
    assert pairs.per_layer["0.weight"] == pytest.approx(model[0].weight.grad.norm().item(), rel=1e-6)


def test_missing_and_nonfinite_gradients_are_named_and_frozen_ones_are_not():
    frozen = parameter(None).requires_grad_(False)
    params = {
        "good": parameter(torch.ones(4)),
        "none": parameter(None),
        "nan": parameter(torch.tensor([1.0, math.nan])),
        "inf": parameter(torch.tensor([-math.inf])),
        "frozen": frozen,
    }
    found = gradient_norms(params)
    assert found.missing == ("none",)
    assert found.nonfinite == ("nan", "inf")
    assert found.per_layer["good"] == 2 and not math.isfinite(found.total)


def test_no_gradient_at_all_is_a_total_of_zero():
    found = gradient_norms({"a": parameter(None)})
    assert (found.per_layer, found.total, found.missing) == ({}, 0.0, ("a",))


def test_large_finite_entries_are_not_called_infinite():
    found = gradient_norms({"a": parameter(torch.full((4,), 1e30))})
    assert found.nonfinite == ()
    assert found.per_layer["a"] == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_summed_in_float32(dtype):
    # A norm beyond float16, ones whose sum in bfloat16 stops at 256, and a norm that neither type holds.
    gradients = [torch.full((9,), 32768.0), torch.ones(4096), torch.ones(3)]
    norms = gradient_norm_tensor([parameter(gradient.to(dtype)) for gradient in gradients])
    assert norms.dtype is torch.float32
    assert norms.tolist() == pytest.approx([98304, 64, 3**0.5], rel=1e-6)


def test_tensor_keeps_positions_mixes_types_and_reads_sparse_gradients():
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 3]]), torch.tensor([1.0, 2.0, 4.0]), (5,), check_invariants=True
    )
    params = [
        parameter(None),
        parameter(torch.tensor([3.0, 4.0], dtype=torch.float64)),
        parameter(sparse),
        parameter(torch.tensor([2.0], dtype=torch.bfloat16)),
    ]
    norms = gradient_norm_tensor(params)
    assert norms.dtype is torch.float64 and norms.shape == (4,)
    assert norms.tolist() == pytest.approx([0, 5, 5, 2])
    assert gradient_norm_tensor([parameter(None)]).tolist() == [0]


def test_tensor_never_waits_for_the_device(monkeypatch):
    def refuse(*_):
        raise AssertionError("copied to the host")

    params = [parameter(torch.ones(4)), parameter(None)]
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    norms = gradient_norm_tensor(params)
    monkeypatch.undo()
    assert norms.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({}, "must hold at least one parameter"),
        ([torch.ones(2)], "got an entry of type Tensor"),
        ([("a", 1.0)], "got an entry of type tuple"),
    ],
)
def test_gradient_norms_refuse(argument, message):
    with pytest.raises(ValueError, match=message):
        gradient_norms(argument)


def test_gradient_norm_tensor_refuses_nothing():
    with pytest.raises(ValueError, match="params must hold at least one tensor"):
        gradient_norm_tensor([])
