from __future__ import annotations

import math

import pytest
import torch

from thalweg.probe import output_logits


def test_numbers_are_those_of_the_definition():
    rows = [[0.0, 1.5, -2.0], [-7.0, 3.0, 0.25]]
    log_z = [math.log(sum(math.exp(x) for x in row)) for row in rows]
    found = output_logits(torch.tensor(rows).view(2, 1, 3))
    assert found.log_z == pytest.approx(sum(log_z) / 2, rel=1e-6)
    assert (found.log_z_min, found.log_z_max) == pytest.approx((min(log_z), max(log_z)), rel=1e-6)
    assert found.mean == pytest.approx(sum(map(sum, rows)) / 6, rel=1e-6)
    assert (found.largest, found.examples) == (7, 2)


def test_a_drift_that_the_loss_does_not_see_is_read_off():
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    before, after = output_logits(logits), output_logits(logits - 12)
    assert after.log_z - before.log_z == pytest.approx(-12, abs=1e-5)
    assert after.mean - before.mean == pytest.approx(-12, abs=1e-5)


def test_positions_that_do_not_count_and_masked_classes_are_left_out():
    logits = torch.tensor([[[1.0, -math.inf], [50.0, 50.0]]])
    found = output_logits(logits, torch.tensor([[0, -100]]))
    assert (found.log_z, found.mean, found.largest, found.examples) == (1, 1, 1, 1)


def test_half_precision_is_summed_in_float32():
    found = output_logits(torch.zeros(4, 3000, dtype=torch.bfloat16))
    assert found.log_z == pytest.approx(math.log(3000), rel=1e-6)


def test_what_is_not_finite_is_shown():
    assert math.isnan(output_logits(torch.tensor([[1.0, math.nan]])).log_z)
    assert output_logits(torch.tensor([[1.0, math.inf]])).largest == math.inf


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.ones(2, 3), torch.zeros(3).long(), r"got \(3,\) for logits \(2, 3\)"),
        (torch.ones(2, 3), torch.full((2,), -100), r"hold a position that counts, got shape \(2, 3\)"),
        (torch.tensor(1.0), None, r"shape \(\.\.\., classes\), got \(\)"),
        (torch.ones(2, 0), None, r"shape \(\.\.\., classes\), got \(2, 0\)"),
    ],
)
def test_output_logits_refuses(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        output_logits(logits, targets)
