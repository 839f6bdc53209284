"""What every normalisation of the room owes torch: compiled = eager, exported, restored from a state dict."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg.nn import BatchChannelNorm, GhostBatchNorm, LayerNormGRU, LayerNormLSTM, WeightStandardization

torch.manual_seed(0)
IMAGES = torch.randn(8, 4, 5, 5)
PARTS = {
    "ghosts": (lambda: GhostBatchNorm(4, 2), IMAGES),
    "ghosts with a tail": (lambda: GhostBatchNorm(4, 3), IMAGES),
    "batch and channels": (lambda: BatchChannelNorm(4, 2), IMAGES),
    "batch and channels, estimated": (lambda: BatchChannelNorm(4, 2, estimated=True), IMAGES[:1]),
    "standardised weights": (lambda: WeightStandardization.of(nn.Conv2d(4, 6, 3)), IMAGES),
    "recurrent": (lambda: LayerNormGRU(5, 4), IMAGES[:, 0, :2]),
    "recurrent, with a cell": (lambda: LayerNormLSTM(5, 4, 2, bidirectional=True), IMAGES[:3, 0]),
}


def together():
    """One network of all of them, since compiling takes long."""
    return nn.Sequential(*(PARTS[name][0]() for name in list(PARTS)[:5]))


@pytest.fixture(params=PARTS)
def part(request):
    make, x = PARTS[request.param]
    torch.manual_seed(0)
    return make(), x


def output(module, x):
    out = module(x)
    return out[0] if isinstance(out, tuple) else out


def after_two_steps(module, x, run):
    """Outputs, gradients and state after two training steps."""
    seen = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        out = output(run, leaf)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        seen += [out.detach(), leaf.grad]
    return seen + [p.grad for p in module.parameters()] + list(module.state_dict().values())


@pytest.mark.parametrize(
    ("make", "x", "backend"),
    # The loop over steps takes the compiler long and has nothing in it that is not in torch's own cells.
    [
        (together, IMAGES, "inductor"),
        (*PARTS["recurrent"], "aot_eager"),
        (*PARTS["recurrent, with a cell"], "aot_eager"),
    ],
    ids=["images", "recurrent", "recurrent, with a cell"],
)
def test_compiled_equals_eager_in_training(make, x, backend):
    torch.manual_seed(0)
    module = make()
    other = copy.deepcopy(module)
    expected = after_two_steps(module, x, module)
    found = after_two_steps(other, x, torch.compile(other, fullgraph=True, backend=backend, dynamic=False))
    for one, reference in zip(found, expected, strict=True):
        assert torch.allclose(one, reference, atol=1e-4, rtol=1e-3)


def test_exported_equals_eager_in_evaluation(part):
    module, x = part
    output(module, x)  # running statistics that are not the first ones
    module.eval()
    exported = torch.export.export(module, (x,)).module()
    assert torch.allclose(output(exported, x), output(module, x), atol=1e-6)


def test_a_state_dict_restores_everything(part):
    module, x = part
    other = copy.deepcopy(module)
    output(module, x)
    other.load_state_dict(module.state_dict(), strict=True)
    for _ in range(2):
        assert torch.equal(output(module, x), output(other, x))
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), other.buffers(), strict=True))
