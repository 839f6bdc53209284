"""GhostBatchNorm against torch's BatchNorm called on one slice after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg.nn import GhostBatchNorm, RandomizedLinear, TrActLinear

LAYERS = {1: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def plain(dim=4, momentum=0.1, **options):
    torch.manual_seed(1)
    norm = LAYERS[dim](3, momentum=momentum, **options).double()
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return norm


def batch(examples, dim=4):
    torch.manual_seed(2)
    return torch.randn(examples, 3, *[2, 3, 2][: dim - 2], dtype=torch.float64) * 3 + 1


def slice_by_slice(norm, x, sizes):
    """Outputs, gradients of input and parameters, from separate calls of torch's layer."""
    x = x.clone().requires_grad_()
    out = torch.cat([norm(part) for part in x.split(sizes)])
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()).sum().backward()
    return [out, x.grad, *(p.grad for p in norm.parameters())]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(
    ("dim", "examples", "sizes"),
    [
        (4, 12, [4, 4, 4]),
        (3, 8, [4, 4]),
        (5, 8, [4, 4]),
        (4, 14, [4, 4, 6]),
        (5, 9, [4, 5]),
        (4, 7, [7]),
        (4, 3, [3]),
    ],
)
def test_slices_are_separate_calls_in_outputs_gradients_and_running_statistics(
    dim, examples, sizes, momentum, compiled, monkeypatch
):
    # What would be compiled also runs operation by operation, in float64.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    norm = plain(dim, momentum)
    made = GhostBatchNorm.of(copy.deepcopy(norm), size=4)
    for turn in range(2):  # twice, so that the cumulative mean has a past
        x = batch(examples, dim) + turn
        expected = slice_by_slice(norm, x, sizes)
        for p in (*norm.parameters(), *made.parameters()):
            p.grad = p.grad if p.grad is None else p.grad.clone()
        found = slice_by_slice(made, x, [examples])
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-12, rtol=1e-12)
    for name, value in norm.state_dict().items():
        assert torch.allclose(made.state_dict()[name].double(), value.double(), atol=1e-12), name


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_right_to_the_rounding_of_float64(momentum):
    norm = plain(momentum=momentum)
    made = GhostBatchNorm.of(copy.deepcopy(norm), size=4)
    for turn in range(2):
        x = batch(12) + turn
        made(x)
        for part in x.split(4):
            norm(part)
    for found, expected in zip(made.buffers(), norm.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_a_batch_without_space_and_a_layer_without_parameters_or_statistics():
    x = batch(9, 2)
    expected = torch.cat(
        [(part - part.mean(0)) / (part.var(0, correction=0) + 1e-5).sqrt() for part in x.split(3)]
    )
    made = GhostBatchNorm(3, 3, affine=False, track_running_stats=False)
    assert torch.allclose(made(x), expected, atol=1e-12) and not made.state_dict()


def test_a_compiled_tail_of_large_values_in_half_precision_is_normalised(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = (batch(10) + 40).to(torch.bfloat16)
    out = GhostBatchNorm(3, 4)(x)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.double(), GhostBatchNorm(3, 4).double()(x.double()), atol=0.02)


@pytest.mark.parametrize("examples", [64, 60])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_under_autocast_statistics_are_as_exact_as_without(backend, examples):
    torch.manual_seed(0)
    torch._dynamo.reset()
    plain, x = GhostBatchNorm(6, 16), torch.randn(examples, 6, 3, 2) * 3 + 2
    other = copy.deepcopy(plain)
    expected, run = plain(x), other if backend is None else torch.compile(other, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(other.running_mean, plain.running_mean, rtol=1e-5)
    assert torch.allclose(other.running_var, plain.running_var, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [GhostBatchNorm, TrActLinear, lambda size, other: RandomizedLinear(size, other, ratio=0.5)],
    ids=["GhostBatchNorm", "TrActLinear", "RandomizedLinear"],
)
def test_what_takes_care_of_autocast_gives_shapes_on_the_meta_device(make):
    made = make(6, 4).to("meta")
    x = torch.randn(11, 6, device="meta", requires_grad=True)
    out = made(x)
    out.sum().backward()
    assert out.shape[0] == 11 and x.grad.shape == x.shape and made.weight.grad.shape == made.weight.shape


def test_of_takes_over_the_parameters_themselves_and_evaluates_like_the_old_layer():
    norm = plain().eval()
    made = GhostBatchNorm.of(norm, 2)
    assert made.weight is norm.weight and made.running_var is norm.running_var and not made.training
    x = batch(8)
    assert torch.equal(made(x), norm(x))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("layout", "shape"), [(torch.channels_last, (11, 6, 3, 4)), (torch.channels_last_3d, (8, 6, 2, 3, 2))]
)
def test_images_with_their_channels_last_stay_so(layout, shape, affine):
    torch.manual_seed(0)
    plain = GhostBatchNorm(6, 4, affine=affine).double()
    for p in plain.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    other = copy.deepcopy(plain)
    x = torch.randn(shape, dtype=torch.float64)
    ends = []
    for made, start in ((plain, x), (other, x.to(memory_format=layout))):
        leaf = start.clone().requires_grad_()
        out = made(leaf)
        (out * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(shape)).sum().backward()
        ends.append([out, leaf.grad, *[p.grad for p in made.parameters()], *made.buffers()])
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(*ends, strict=True))
    assert all(t.is_contiguous(memory_format=layout) for t in ends[1][:2])


def test_without_statistics_it_runs_under_vmap_as_torchs_does():
    made, x = GhostBatchNorm(4, 3, track_running_stats=False), torch.randn(2, 7, 4, 5)
    for run in (made, nn.BatchNorm1d(4, track_running_stats=False)):
        expected = torch.stack([run(one) for one in x])
        assert torch.allclose(torch.func.vmap(run)(x), expected, atol=1e-6)


def test_gradients_are_those_of_accumulating_over_equal_slices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    ghosts = copy.deepcopy(model)
    ghosts[1] = GhostBatchNorm.of(ghosts[1], 4)
    x, y = batch(12, 2), torch.arange(12) % 2
    for one, of_labels in zip(x.split(4), y.split(4), strict=True):
        (nn.functional.cross_entropy(model(one), of_labels) / 3).backward()
    nn.functional.cross_entropy(ghosts(x), y).backward()
    for p, q in zip(model.parameters(), ghosts.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_input_is_normalised_with_float32_statistics(dtype):
    x = batch(8).to(torch.bfloat16)
    made = GhostBatchNorm(3, 4).to(dtype)
    exact = GhostBatchNorm(3, 4).double()
    out = made(x)
    assert out.dtype == torch.bfloat16 and made.running_mean.dtype == dtype
    assert torch.allclose(out.double(), exact(x.double()), atol=0.02)
    assert torch.allclose(
        made.running_var.double(), exact.running_var, atol=0.02 if dtype != x.dtype else 0.1
    )


def test_refusals():
    with pytest.raises(ValueError, match="size must be an integer >= 1, got 0"):
        GhostBatchNorm(3, 0)
    with pytest.raises(ValueError, match=r"eps must be in \[0, inf\), got -1"):
        GhostBatchNorm(3, eps=-1)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 2"):
        GhostBatchNorm(3, momentum=2)
    with pytest.raises(ValueError, match="norm must be a BatchNorm1d, 2d or 3d, got SyncBatchNorm"):
        GhostBatchNorm.of(nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match=r"input must have shape \(n, 3, \.\.\.\), got \(4, 2\)"):
        GhostBatchNorm(3)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="size must leave 2 values a channel in a slice, got 1"):
        GhostBatchNorm(3, 1)(torch.zeros(4, 3))
    assert GhostBatchNorm(3, 1)(torch.randn(4, 3, 2)).shape == (4, 3, 2)
