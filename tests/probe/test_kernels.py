"""Kernel alignment against its definition, and what leaves it at 1."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.probe import gram_alignment, gram_matrix


def features(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hsic(k, m):
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n
    return torch.trace(k @ h @ m @ h)


def test_it_is_the_normalised_independence_criterion_of_the_uncentred_kernels():
    x, y = features(12, 5), features(12, 7, seed=1).tanh() + 3
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert gram_alignment(gram_matrix(x), gram_matrix(y)) == pytest.approx(float(expected), rel=1e-12)


def test_rotation_scale_and_shift_leave_it_at_one_and_other_features_do_not():
    x = features(20, 6)
    turn, _ = torch.linalg.qr(features(6, 6, seed=2))
    assert gram_alignment(gram_matrix(x), gram_matrix(3 * x @ turn + 5)) == pytest.approx(1, abs=1e-12)
    assert gram_alignment(gram_matrix(x), gram_matrix(features(20, 6, seed=3))) < 0.6


def test_two_orthogonal_features_of_one_kernel_align_by_their_share():
    # K = a a' + b b' with a, b centred and orthonormal: against a a' alone the alignment is 1 / sqrt(2).
    a = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    b = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    both, one = gram_matrix(torch.stack([a, b], 1)), gram_matrix(a[:, None])
    assert gram_alignment(both, one) == pytest.approx(1 / math.sqrt(2))


def test_maps_are_taken_for_one_vector_an_example_and_half_precision_is_widened():
    x = features(6, 24).float()
    assert torch.equal(gram_matrix(x), gram_matrix(x.reshape(6, 2, 3, 4)))
    assert gram_matrix(x.bfloat16()).dtype is torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gram_matrix(torch.ones(1, 3)), r"two examples or more, got \(1, 3\)"),
        (lambda: gram_matrix(torch.ones(3)), r"got \(3,\)"),
        (lambda: gram_matrix(torch.full((2, 2), math.nan)), "must be finite"),
        (lambda: gram_alignment(torch.eye(2), torch.eye(3)), r"\(2, 2\) and \(3, 3\)"),
        (lambda: gram_alignment(torch.zeros(2, 2), torch.eye(2)), "all alike"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
