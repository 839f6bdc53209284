"""Two models of other floating-point types merge in those of the first."""

from __future__ import annotations

import copy

import pytest
import torch

from thalweg.surgery import align, factorize, interpolate, match_statistics
from thalweg.tasks import CNN, MLP


def pair():
    return (MLP((4, 9, 8, 3), seed=seed) for seed in (0, 1))


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("wide", [torch.float64, torch.bfloat16])
def test_a_reference_of_another_type_is_aligned_to_as_in_the_models_type(method, wide):
    model, reference = pair()
    reference.to(wide)
    x = torch.randn(20, 4)
    new, report = align(model, reference, x, method=method)
    expected, other = align(model, copy.deepcopy(reference).float(), x, method=method)
    assert all(torch.equal(p, q) for p, q in zip(new.parameters(), expected.parameters(), strict=True))
    assert report.distance == other.distance and new[0].weight.dtype == torch.float32
    assert next(reference.parameters()).dtype == wide


def test_corrections_run_each_model_in_the_type_of_the_first():
    start, end = pair()
    data = [torch.randn(50, 4)]
    new, _ = interpolate(start, copy.deepcopy(end).double(), renormalise="repair", batches=data)
    expected, _ = interpolate(start, end, renormalise="repair", batches=data)
    assert all(torch.equal(p, q) for p, q in zip(new.parameters(), expected.parameters(), strict=True))
    _, report = match_statistics(start, end.double(), data)
    assert report.layers


def test_statistics_follow_and_what_a_narrow_type_cannot_hold_is_refused():
    start, end = CNN(width=2, seed=0), CNN(width=2, seed=1).double()
    new, _ = interpolate(start, end, batches=[torch.randn(5, 1, 8, 8)])
    assert {t.dtype for t in new.state_dict().values() if t.is_floating_point()} == {torch.float32}
    one, other = pair()
    with torch.no_grad():
        next(other.parameters()).fill_(1e6)
    with pytest.raises(
        ValueError, match=r"end must have finite real weights, got '.*weight' of torch.float16"
    ):
        interpolate(one.half(), other)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_distances_of_narrow_weights_are_those_of_their_exact_values(narrow):
    model, reference = (one.to(narrow) for one in pair())
    new, report = align(model, reference, torch.randn(20, 4).to(narrow))
    for at, one in enumerate((model, new)):
        exact = {
            name: torch.linalg.vector_norm(p.double() - reference.get_parameter(name).double()).item()
            for name, p in one.named_parameters()
        }
        assert {name: parts[at] for name, parts in report.layers.items()} == pytest.approx(exact, rel=1e-6)
        whole = sum(part**2 for part in exact.values()) ** 0.5
        assert report.distance[at] == pytest.approx(whole, rel=1e-6)


def test_autocast_changes_nothing():
    model, reference = pair()
    x = torch.randn(20, 4)
    options = {"renormalise": "repair", "batches": [x]}
    found = [align(model, reference, x, method=method) for method in ("weights", "correlations")]
    found.append(interpolate(model, reference, **options))
    with torch.autocast("cpu", torch.bfloat16):
        again = [align(model, reference, x, method=method) for method in ("weights", "correlations")]
        again.append(interpolate(model, reference, **options))
    for (one, _), (other, _) in zip(found, again, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        merged = factorize(model, 0.5, min_ratio=1, others="merged")[0]
    expected = factorize(model, 0.5, min_ratio=1, others="merged")[0]
    assert torch.equal(merged[2].weight, expected[2].weight)
    assert all(layer.after == pytest.approx(1) for layer in again[2][1].layers.values())
