"""Models that run in a region of autocast alone are read in it, others in the types of their weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg


def watched(model, region, loss_fn=None):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    with thalweg.watch(model, opt, store=None, budget=1e9, loss_fn=loss_fn) as run:
        for _ in range(25):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=region):
                loss = F.cross_entropy(model(x).float(), y)
            opt.zero_grad()
            loss.backward()
            run.log(loss=loss, batch=(x, y))
            opt.step()
    return run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("whole", [False, True])
def test_weights_in_half_precision_are_read_as_the_loop_runs_them(whole):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    model[0].bfloat16()
    if whole:
        model.bfloat16()
    run = watched(model, True)
    assert run.disabled == {}
    assert not torch.is_autocast_enabled("cpu")
    assert (
        not {"dormant units", "feature rank", "feature alignment", "opposing signals"} & run.left_out().keys()
    )


@pytest.mark.parametrize("region", [True, False])
def test_weights_in_full_precision_are_read_in_it(region):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def see(module, inputs, output):
        # A probe's pass is one without gradients.
        assert torch.is_grad_enabled() or output.dtype is torch.float32

    model[0].register_forward_hook(see)
    run = watched(model, region)
    assert run.disabled == {} and "dormant units" not in run.left_out()
