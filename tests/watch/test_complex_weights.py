"""Complex weights: what is read of real ones says so, by name, and trains on."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg


class Filtered(nn.Module):
    """A filter in the frequency domain before a linear layer."""

    def __init__(self, real):
        super().__init__()
        filter = torch.randn(5, dtype=torch.complex64)
        self.filter = nn.Parameter(torch.view_as_real(filter) if real else filter)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        filter = self.filter if self.filter.is_complex() else torch.view_as_complex(self.filter)
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * filter, n=8))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("real", [False, True])
def test_sharpness_and_noise_of_complex_weights_say_why_they_are_not_read(kind, real):
    torch.manual_seed(0)
    model = Filtered(real)
    opt = kind(model.parameters(), lr=1e-3)
    x, y = torch.randn(64, 8), torch.randint(3, (64,))

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with thalweg.watch(model, opt, loss_fn=loss_fn, store=None, budget=1e9) as run:
            for _ in range(65):
                opt.zero_grad()
                loss = loss_fn(model, (x, y))
                loss.backward()
                run.log(loss=loss, batch=(x, y))
                opt.step()
        left = run.left_out()
    assert run.disabled == {}
    if real:
        assert not {"sharpness", "gradient noise"} & left.keys()
    else:
        assert "filter is complex" in left["sharpness"] and "view_as_complex" in left["sharpness"]
        assert "real weights" in left["gradient noise"]
