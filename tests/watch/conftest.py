"""Small models to watch; the planted and healthy runs whose rates are published can be imported."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import tasks

# For ``benchmarks``, which is beside the package, not in it.
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Thread pools of parallel test processes wait for each other, and these tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Small:
    """A model with dropout and batch normalisation, one batch after the other, and a plain loop."""

    def __init__(self, dtype=torch.float32):
        torch.manual_seed(0)
        layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
        self.model = nn.Sequential(*layers).to(dtype)
        self.x = torch.randn(64, 8, dtype=dtype)
        self.y = torch.randint(0, 4, (64,))
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    @property
    def whole(self):
        return (self.x, self.y)

    @staticmethod
    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def train(self, steps, run=None):
        for _ in range(steps):
            index = torch.randint(0, 64, (32,))
            batch = self.x[index], self.y[index]
            loss = self.loss_fn(self.model, batch)
            loss.backward()
            if run is not None:
                run.log(loss=loss, batch=batch)
            self.opt.step()
            self.opt.zero_grad()


class Text(Small):
    """The small GPT on text."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = tasks.GPT(97, 16, layers=1, heads=2, width=16, seed=0)
        text = tasks.library_text(max_characters=20_000)
        self.x, self.y = text.batch("train", 64, 16)
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    @staticmethod
    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@pytest.fixture
def small():
    return Small()


@pytest.fixture
def make_small():
    return Small


@pytest.fixture(params=[Small, Text], ids=["dropout and batch norm", "gpt"])
def make(request):
    return request.param
