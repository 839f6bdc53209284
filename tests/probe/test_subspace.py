from __future__ import annotations

import math

import pytest
import torch

from thalweg.probe import layer_shares, share_in_span, sharpness, subspace_overlap, top_subspace


def explicit(problem, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top eigenvectors as columns, and the gradient."""
    vectors = torch.linalg.eigh(problem.hessian())[1].flip(1)[:, :k]
    gradient = torch.autograd.grad(problem.loss_fn(), problem.params)
    return vectors, torch.cat([g.reshape(-1) for g in gradient])


def test_share_and_span_are_those_of_the_explicit_eigenvectors(problem):
    vectors, gradient = explicit(problem, 3)
    expected = ((vectors.T @ gradient).square().sum() / gradient.square().sum()).item()
    found = top_subspace(problem.loss_fn, problem.params, 3, tol=1e-8, iterations=80)
    assert found.share == pytest.approx(expected, rel=1e-5)
    assert found.chance == 3 / len(gradient) and math.isnan(found.overlap)
    assert subspace_overlap(found.vectors, vectors.T) == pytest.approx(1, abs=1e-8)


def test_overlap_over_time_and_a_gradient_of_other_examples(mlp):
    first = top_subspace(mlp.loss_fn, mlp.params, 3, tol=1e-8, iterations=51)
    before, _ = explicit(mlp, 3)
    optimizer = torch.optim.SGD(mlp.params, lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        mlp.loss_fn().backward()
        optimizer.step()
    after, _ = explicit(mlp, 3)
    other = torch.randn(51, dtype=torch.float64)
    second = top_subspace(
        mlp.loss_fn, mlp.params, 3, gradient=other, previous=first.vectors, tol=1e-8, iterations=51
    )
    assert second.overlap == pytest.approx(((before.T @ after).square().sum() / 3).item(), rel=1e-6)
    assert second.share == pytest.approx(
        ((after.T @ other).square().sum() / other.square().sum()).item(), rel=1e-6
    )


def test_random_directions_and_spans_lie_in_a_span_by_chance():
    torch.manual_seed(0)
    n, k = 400, 20
    basis = torch.linalg.qr(torch.randn(n, k))[0].T
    shares = [share_in_span(torch.randn(n), basis) for _ in range(200)]
    assert sum(shares) / 200 == pytest.approx(k / n, rel=0.05)
    overlaps = [subspace_overlap(basis, torch.linalg.qr(torch.randn(n, 8))[0].T) for _ in range(100)]
    assert sum(overlaps) / 100 == pytest.approx(k / n, rel=0.05)


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles():
    plane = torch.eye(4)[:2]
    tilted = torch.stack([torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0.6, 0.8, 0])])
    assert subspace_overlap(plane, tilted) == pytest.approx((1 + 0.36) / 2)
    assert subspace_overlap(plane, torch.eye(4)[2:]) == 0
    assert subspace_overlap(plane, torch.eye(4)[:1]) == 1


def test_layer_shares_sum_to_one_by_name(mlp):
    vector = torch.zeros(51, dtype=torch.float64)
    vector[:24], vector[-3:] = 1.0, 2.0
    shares = layer_shares(vector, mlp.model)
    assert shares == pytest.approx({"0.weight": 24 / 36, "0.bias": 0, "2.weight": 0, "2.bias": 12 / 36})


def test_eigenvectors_and_their_span_are_broken_down_by_parameter(mlp):
    vectors, _ = explicit(mlp, 2)
    sizes = [p.numel() for p in mlp.params]
    expected = torch.stack([piece.square().sum(0) for piece in vectors.split(sizes)])
    options = {"tol": 1e-9, "iterations": 51}
    each = sharpness(mlp.loss_fn, mlp.params, top=2, **options).shares(mlp.model)
    assert [list(one) for one in each] == [[name for name, _ in mlp.model.named_parameters()]] * 2
    for one, column in zip(each, expected.T, strict=True):
        assert list(one.values()) == pytest.approx(column.tolist(), abs=1e-6)
    whole = top_subspace(mlp.loss_fn, mlp.params, 2, **options).shares(mlp.model)
    assert list(whole.values()) == pytest.approx(expected.mean(1).tolist(), abs=1e-6)


def test_a_zero_vector_has_no_share():
    assert math.isnan(share_in_span(torch.zeros(3), torch.eye(3)[:1]))


def test_a_reading_inside_of_autocast_and_of_tiny_losses_has_the_same_span(mlp):
    model, inputs = mlp.model.float(), mlp.inputs.float()
    params = list(model.parameters())

    def loss(scale: float = 1.0) -> torch.Tensor:
        return scale * mlp.loss(model(inputs).float())

    plain = top_subspace(loss, params, 3)
    tiny = top_subspace(lambda: loss(1e-27), params, 3)
    assert tiny.share == pytest.approx(plain.share, rel=1e-3)
    assert [value * 1e27 for value in tiny.eigenvalues] == pytest.approx(plain.eigenvalues, rel=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = top_subspace(loss, params, 3)
    assert rounded.vectors[0].dtype is torch.float32
    assert subspace_overlap(rounded.vectors, plain.vectors) == pytest.approx(1, abs=0.02)


def test_rows_of_a_matrix_are_an_earlier_reading_too(mlp):
    first = top_subspace(mlp.loss_fn, mlp.params, 3)
    rows, listed = (
        top_subspace(mlp.loss_fn, mlp.params, 3, previous=previous)
        for previous in (torch.stack(first.vectors), first.vectors)
    )
    assert rows.eigenvalues == listed.eigenvalues and rows.overlap == listed.overlap > 0.9


def test_subspace_probes_refuse(mlp):
    with pytest.raises(ValueError, match=r"vector must have shape \(3,\), got \(4,\)"):
        share_in_span(torch.ones(4), torch.eye(3))
    with pytest.raises(ValueError, match="basis must be orthonormal, got inner products up to 4"):
        share_in_span(torch.ones(3), 2 * torch.eye(3))
    with pytest.raises(ValueError, match=r"second must hold vectors of shape \(3,\), got \(4,\)"):
        subspace_overlap(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match="first must hold at least one vector"):
        subspace_overlap(torch.empty(0, 3), torch.eye(3))
    with pytest.raises(ValueError, match=r"vector must have shape \(51,\), got \(2,\)"):
        layer_shares(torch.ones(2), mlp.model)
    with pytest.raises(ValueError, match="top must be an integer >= 1, got 0"):
        top_subspace(mlp.loss_fn, mlp.params, 0)
