"""Small float64 losses whose whole Hessian can be written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional


class Problem:
    """A model with its loss on one fixed batch, and the explicit Hessian of that loss."""

    def __init__(self, model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]):
        self.model = model
        self.inputs = inputs
        self.params = list(model.parameters())
        self.loss = loss

    def loss_fn(self) -> Tensor:
        return self.loss(self.model(self.inputs))

    def hessian(self) -> Tensor:
        names, params = zip(*self.model.named_parameters(), strict=True)
        flat = torch.cat([p.detach().reshape(-1) for p in params])

        def of_flat(vector: Tensor) -> Tensor:
            pieces = vector.split([p.numel() for p in params])
            named = {name: piece.view_as(p) for name, piece, p in zip(names, pieces, params, strict=True)}
            return self.loss(functional_call(self.model, named, (self.inputs,)))

        # Forward over reverse differs from the operator's double backward.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return hessian(of_flat)(flat)


class AttentionBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def mlp_problem() -> Problem:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    targets = torch.randint(3, (20,))
    return Problem(
        model, torch.randn(20, 4, dtype=torch.float64), lambda z: functional.cross_entropy(z, targets)
    )


def cnn_problem() -> Problem:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    ).double()
    inputs = torch.randn(10, 1, 6, 6, dtype=torch.float64)
    model(inputs)
    model.eval()
    targets = torch.randint(3, (10,))
    return Problem(model, inputs, lambda z: functional.cross_entropy(z, targets))


def attention_problem() -> Problem:
    model = AttentionBlock(4).double()
    goal = torch.randn(3, 5, 4, dtype=torch.float64)
    return Problem(model, torch.randn(3, 5, 4, dtype=torch.float64), lambda z: (z - goal).square().mean())


PROBLEMS = {"mlp": mlp_problem, "cnn": cnn_problem, "attention": attention_problem}


@pytest.fixture(params=sorted(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> Problem:
    torch.manual_seed(0)
    return PROBLEMS[request.param]()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Thread pools of parallel test processes wait for each other, and these tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def mlp() -> Problem:
    torch.manual_seed(0)
    return mlp_problem()
