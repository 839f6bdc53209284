from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.nn import TwoStageLabelSmoothing, two_stage_label_smoothing


def batch(*shape, classes=5):
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, classes, dtype=torch.float64, generator=source)
    return logits, torch.randint(classes, shape, generator=source)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_each_stage_is_the_cross_entropy_of_torch(reduction):
    logits, targets = batch(4, 3)
    targets[1, 2] = -100
    for step, smoothing in ((0, 0.3), (9, 0.3), (10, 0.0), (11, 0.0)):
        expected = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing, reduction=reduction
        )
        for given in (step, torch.tensor(step)):
            found = two_stage_label_smoothing(logits, targets, given, 10, smoothing=0.3, reduction=reduction)
            assert torch.allclose(found.flatten(), expected.flatten(), rtol=1e-12)
            assert found.shape == (targets.shape if reduction == "none" else ())


def test_gradient_is_probability_minus_smoothed_label_and_the_least_loss_its_entropy():
    logits, targets = batch(6)
    smoothed = torch.full((6, 5), 0.4 / 5, dtype=torch.float64)
    smoothed[torch.arange(6), targets] += 0.6
    leaf = logits.clone().requires_grad_()
    two_stage_label_smoothing(leaf, targets, 0, 1, reduction="sum").backward()
    assert torch.allclose(leaf.grad, logits.softmax(-1) - smoothed, atol=1e-12)
    entropy = -(smoothed[0] * smoothed[0].log()).sum().item()
    best = smoothed.log()
    assert two_stage_label_smoothing(best, targets, 0, 1).item() == pytest.approx(entropy)
    assert two_stage_label_smoothing(best, targets, 1, 1).item() == pytest.approx(-math.log(0.68))


def test_a_module_switches_at_its_step_and_resumes_from_its_state_dict():
    logits, targets = batch(4)
    loss_fn = TwoStageLabelSmoothing(2, 0.4)
    plain = functional.cross_entropy(logits, targets).item()
    smooth = functional.cross_entropy(logits, targets, label_smoothing=0.4).item()
    seen = []
    for _ in range(4):
        seen.append(loss_fn(logits, targets).item())
        loss_fn.step()
    assert seen == pytest.approx([smooth, smooth, plain, plain])
    resumed = TwoStageLabelSmoothing(2, 0.4)
    assert resumed(logits, targets).item() == pytest.approx(smooth)
    assert resumed.eval()(logits, targets).item() == pytest.approx(plain)
    resumed.load_state_dict(loss_fn.state_dict())
    assert resumed.train()(logits, targets).item() == pytest.approx(plain) and resumed.steps == 4


def test_half_precision_logits_are_computed_in_float32_and_nothing_that_counts_is_nan_as_in_torch():
    logits, targets = batch(3)
    half = logits.bfloat16()
    found = two_stage_label_smoothing(half, targets, 0, 1)
    assert found.dtype is torch.float32
    assert torch.equal(found, two_stage_label_smoothing(half.float(), targets, 0, 1))
    ignored = torch.full((3,), -100)
    assert two_stage_label_smoothing(logits, ignored, 0, 1).isnan()
    assert functional.cross_entropy(logits, ignored).isnan()


def test_a_compiled_loss_goes_over_the_switch_without_compiling_again():
    logits, targets = batch(4)
    loss_fn = TwoStageLabelSmoothing(2)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="eager")
    with torch.compiler.set_stance("default"):
        compiled(logits, targets)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(4):
            assert compiled(logits, targets).item() == pytest.approx(loss_fn(logits, targets).item())
            loss_fn.step()
    exported = torch.export.export(loss_fn, (logits, targets)).module()
    assert exported(logits, targets).item() == pytest.approx(loss_fn(logits, targets).item())


def test_two_stage_label_smoothing_refuses():
    logits, targets = batch(3)
    with pytest.raises(ValueError, match="switch must be an integer >= 0, got -1"):
        two_stage_label_smoothing(logits, targets, 0, -1)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), got 1"):
        TwoStageLabelSmoothing(1, 1)
    with pytest.raises(ValueError, match="reduction must be one of mean, none, sum; got 'max'"):
        TwoStageLabelSmoothing(1, reduction="max")
    with pytest.raises(ValueError, match=r"targets must be class indices, got torch\.float64"):
        two_stage_label_smoothing(logits, logits.softmax(-1), 0, 1)
    with pytest.raises(ValueError, match=r"targets must be class indices of torch\.int64, got torch\.int32"):
        two_stage_label_smoothing(logits, targets.int(), 0, 1)
    with pytest.raises(ValueError, match=r"got \(2,\) for logits \(3, 5\)"):
        two_stage_label_smoothing(logits, targets[:2], 0, 1)
    with pytest.raises(IndexError):
        nn.CrossEntropyLoss()(logits, targets + 5)
    with pytest.raises(IndexError):
        two_stage_label_smoothing(logits, targets + 5, 0, 1)


def test_masked_logits_are_as_finite_as_in_plain_cross_entropy():
    logits, targets = batch(6, classes=4)
    logits = torch.cat([logits, torch.full((6, 1), -math.inf, dtype=torch.float64)], 1).requires_grad_()
    loss = two_stage_label_smoothing(logits, targets, step=5, switch=3)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets))
    loss.backward()
    assert logits.grad.isfinite().all()
