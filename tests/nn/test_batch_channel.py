"""BatchChannelNorm against a loop over channels, groups and examples, written from the paper's formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from thalweg.nn import BatchChannelNorm, convert


def layer(estimated, channels=6, groups=2, **options):
    torch.manual_seed(0)
    made = BatchChannelNorm(channels, groups, estimated=estimated, **options).double()
    for p in made.parameters():
        p.data.uniform_(0.5, 1.5)
    made.running_mean.uniform_(-1, 1)
    made.running_var.uniform_(0.5, 2)
    return made


def group_stage(made, z):
    """Every example and group by itself; one gain and one offset a group."""
    out, size = torch.empty_like(z), z.shape[1] // made.groups
    for n in range(z.shape[0]):
        for g in range(made.groups):
            part = z[n, g * size : (g + 1) * size]
            centred = part - part.mean()
            normal = centred / (centred.square().mean() + made.eps) ** 0.5
            out[n, g * size : (g + 1) * size] = normal * made.group_weight[g] + made.group_bias[g]
    return out


def channel_stage(made, x, means, variances):
    z = torch.empty_like(x)
    for c in range(x.shape[1]):
        z[:, c] = made.weight[c] * (x[:, c] - means[c]) / (variances[c] + made.eps) ** 0.5 + made.bias[c]
    return z


def gradients(out, x, made):
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights.sin()).sum(), [x, *made.parameters()])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_estimated_stage_is_the_formula_with_no_gradient_through_the_estimates(batch):
    made = layer(True, rate=0.3)
    mean, variance = made.running_mean.clone(), made.running_var.clone()
    for _ in range(2):
        x = (torch.randn(batch, 6, 3, 2, dtype=torch.float64) * 2 + 1).requires_grad_()
        for c in range(6):
            seen = x.detach()[:, c]
            about_the_old = sum((v - mean[c]) ** 2 for v in seen.flatten()) / seen.numel()
            variance[c] = variance[c] + 0.3 * (about_the_old - variance[c])
            mean[c] = mean[c] + 0.3 * (seen.mean() - mean[c])
        expected = group_stage(made, channel_stage(made, x, mean, variance))
        found = made(x)
        assert torch.allclose(found, expected, atol=1e-12)
        assert torch.allclose(made.running_mean, mean) and torch.allclose(made.running_var, variance)
        for one, other in zip(gradients(found, x, made), gradients(expected, x, made), strict=True):
            assert torch.allclose(one, other, atol=1e-10)


def test_batch_stage_is_batch_normalisation_with_its_gradient_and_statistics():
    made, norm = layer(False), nn.BatchNorm2d(6).double()
    norm.weight, norm.bias = made.weight, made.bias
    norm.running_mean.copy_(made.running_mean)
    norm.running_var.copy_(made.running_var)
    x = torch.randn(4, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    expected, found = group_stage(made, norm(x)), made(x)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(made.running_var, norm.running_var)
    for one, other in zip(gradients(found, x, made), gradients(expected, x, made), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("estimated", [False, True])
def test_evaluation_uses_the_estimates_and_moves_none(estimated):
    made = layer(estimated).eval()
    mean, variance = made.running_mean.clone(), made.running_var.clone()
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    assert torch.allclose(made(x), group_stage(made, channel_stage(made, x, mean, variance)), atol=1e-12)
    assert torch.equal(made.running_mean, mean) and torch.equal(made.running_var, variance)


def test_a_layer_that_runs_twice_before_the_backward_pass_has_the_right_gradient():
    made = layer(True)
    x = torch.randn(2, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    first, second = made(x), made(x + 1)
    (first.sum() + second.square().sum()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_gradients_and_estimates_are_those_of_a_plain_pass(reentrant):
    x = torch.randn(2, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    plain, checkpointed = layer(True, rate=0.5), layer(True, rate=0.5)
    for _ in range(2):
        expected = gradients(plain(x), x, plain)
        found = checkpoint(checkpointed, x, use_reentrant=reentrant)
        x.grad = None
        checkpointed.zero_grad()
        weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
        (found * weights.sin()).sum().backward()
        for one, other in zip([x, *checkpointed.parameters()], expected, strict=True):
            assert torch.equal(one.grad, other)
        assert torch.equal(checkpointed.running_mean, plain.running_mean)
        assert torch.equal(checkpointed.running_var, plain.running_var)


@pytest.mark.filterwarnings("error")
def test_an_empty_batch_moves_no_estimate():
    made = layer(True)
    mean, variance = made.running_mean.clone(), made.running_var.clone()
    assert made(torch.randn(0, 6, 2, 2, dtype=torch.float64)).shape == (0, 6, 2, 2)
    assert torch.equal(made.running_mean, mean) and torch.equal(made.running_var, variance)


def test_what_is_made_on_the_meta_device_can_be_filled():
    made = BatchChannelNorm(6, 2, rate=0.25, device="meta").to_empty(device="cpu")
    for tensor in (*made.parameters(), *made.buffers()):
        nn.init.constant_(tensor, torch.nan)
    made.reset_parameters()
    fresh = BatchChannelNorm(6, 2, rate=0.25).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in made.state_dict().items())


def test_estimates_of_single_images_come_to_the_moments_of_the_data():
    torch.manual_seed(0)
    made = BatchChannelNorm(2, 1, estimated=True)
    for _ in range(1500):
        made(3 * torch.randn(1, 2, 4, 4) + torch.tensor([5.0, -2.0]).view(1, 2, 1, 1))
    assert torch.allclose(made.running_mean, torch.tensor([5.0, -2.0]), atol=0.3)
    assert torch.allclose(made.running_var, torch.tensor([9.0, 9.0]), rtol=0.1)


def test_the_rate_is_a_buffer_that_may_follow_a_schedule():
    made = layer(True, rate=0.0)
    before = made.running_mean.clone()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    made(x)
    assert torch.equal(made.running_mean, before)
    made.rate.fill_(1.0)
    made(x)
    assert torch.allclose(made.running_mean, x.mean((0, 2))) and "rate" in made.state_dict()


def test_it_takes_the_place_of_batch_normalisation():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.ReLU())
    model(torch.randn(8, 1, 5, 5))
    made = convert(model, {nn.BatchNorm2d: lambda norm: BatchChannelNorm.of(norm, 2, estimated=True)})[1]
    assert (made.eps, made.momentum, made.groups, made.estimated) == (1e-3, 0.2, 2, True)
    assert torch.equal(made.running_mean, model[1].running_mean) and torch.equal(made.weight, model[1].weight)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision_keep_float32_estimates(half):
    norm = nn.BatchNorm2d(4)
    norm.weight.data, norm.bias.data = norm.weight.data.to(half), norm.bias.data.to(half)
    made = BatchChannelNorm.of(norm, 2, estimated=True, rate=0.25)
    x = torch.randn(2, 4, 3, 3).to(half)
    assert made(x).dtype == half and made.running_mean.dtype == torch.float32
    torch.testing.assert_close(made.running_mean, 0.25 * x.float().mean((0, 2, 3)))


def test_refusals():
    with pytest.raises(ValueError, match="groups must divide the 6 channels, got 4"):
        BatchChannelNorm(6, 4)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 2"):
        BatchChannelNorm(6, 2, rate=2)
    with pytest.raises(ValueError, match=r"input must have shape \(n, 6, \.\.\.\), got \(2, 5, 3\)"):
        BatchChannelNorm(6, 2)(torch.zeros(2, 5, 3))
    with pytest.raises(
        ValueError, match=r"module '0' \(BatchNorm2d\): groups must divide the 6 channels, got 32"
    ):
        convert(nn.Sequential(nn.BatchNorm2d(6)), {nn.BatchNorm2d: BatchChannelNorm.of})
    with pytest.raises(ValueError, match="norm must have weight, bias, running statistics and a momentum"):
        BatchChannelNorm.of(nn.BatchNorm2d(4, affine=False), 2)
