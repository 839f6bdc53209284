from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.credit import directional_derivative, forward_gradient, forward_gradient_variance


def mse(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def mean_square(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    return (out[0] if isinstance(out, tuple) else out).square().mean()


def tiny(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1, bias=False)).to(dtype)


def tiny_batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(-1, 2, 5, dtype=dtype)[:, None]
    return x, x.sin()


def backprop(model, batch, loss_fn) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss_fn(model, batch), list(named.values()))
    return dict(zip(named, grads, strict=True))


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in tensors.values()])


def like(model: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = vector.split([p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


def estimate(model, batch, loss_fn=mse, **kwargs) -> torch.Tensor:
    model.zero_grad()
    forward_gradient(model, batch, loss_fn, **kwargs)
    return flat({name: p.grad for name, p in model.named_parameters() if p.requires_grad})


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x).tanh())


class RunningMean(nn.Module):
    """Changes one buffer in place and puts a new tensor in the place of another."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x):
        y = self.linear(x)
        self.mean.mul_(0.9).add_(y.mean(0).detach(), alpha=0.1)
        self.last = y.mean(0).detach()
        return y - self.mean


MODELS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)), torch.randn(4, 3)),
    "batch norm": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
        torch.randn(3, 2, 6, 6),
    ),
    "attention": lambda: (Attention(), torch.randn(2, 4, 8)),
    "encoder": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        torch.randn(2, 4, 8),
    ),
    "encoder in evaluation": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
        torch.randn(2, 4, 8),
    ),
    "lstm": lambda: (nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)),
    "tied": lambda: (Tied(), torch.randint(7, (3, 5))),
    "own buffers": lambda: (RunningMean(), torch.randn(4, 3)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_slope_is_the_float64_gradient_along_the_tangent(kind):
    torch.manual_seed(1)
    model, x = MODELS[kind]()
    model.double()
    x = x.double() if x.is_floating_point() else x
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(2)
    tangents = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    loss, slope = directional_derivative(model, x, mean_square, tangents)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    expected = flat(backprop(model, x, mean_square)) @ flat(tangents)
    assert slope.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-13)
    model.load_state_dict(before)
    assert loss.item() == pytest.approx(mean_square(model, x).item(), rel=1e-12)
    assert not loss.requires_grad and not slope.requires_grad


def test_the_mean_over_all_sign_vectors_is_the_gradient_and_the_spread_is_known():
    model, batch = tiny(), tiny_batch()
    gradient = flat(backprop(model, batch, mse))
    signs = [torch.tensor(s, dtype=torch.float64) for s in itertools.product((-1, 1), repeat=3)]
    estimates = torch.stack([estimate(model, batch, directions=[like(model, v)]) for v in signs])
    torch.testing.assert_close(estimates.mean(0), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        estimate(model, batch, directions=[like(model, v) for v in signs]), gradient, rtol=1e-12, atol=1e-14
    )
    errors = estimates - gradient
    square = gradient.square()
    covariance = (
        square.sum() * torch.eye(3, dtype=torch.float64) + gradient.outer(gradient) - 2 * square.diag()
    )
    torch.testing.assert_close(errors.T @ errors / len(signs), covariance, rtol=1e-12, atol=1e-14)
    assert (errors.square().sum(1).mean() / square.sum()).item() == pytest.approx(
        forward_gradient_variance(3, 1, "rademacher")
    )


def test_gaussian_moments_by_quadrature_are_the_closed_form():
    model, batch = tiny(), tiny_batch()
    gradient = flat(backprop(model, batch, mse))
    # Five nodes an axis integrate degree 9 exactly; the covariance has degree 4.
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    grid = list(itertools.product(range(5), repeat=3))
    mass = torch.tensor([math.prod(weights[i] for i in point) for point in grid])
    estimates = torch.stack(
        [estimate(model, batch, directions=[like(model, torch.tensor(nodes[list(p)]))]) for p in grid]
    )
    torch.testing.assert_close(mass @ estimates, gradient, rtol=1e-11, atol=1e-13)
    errors = estimates - gradient
    covariance = gradient.square().sum() * torch.eye(3, dtype=torch.float64) + gradient.outer(gradient)
    torch.testing.assert_close((errors * mass[:, None]).T @ errors, covariance, rtol=1e-11, atol=1e-13)
    assert covariance.trace() / gradient.square().sum() == pytest.approx(forward_gradient_variance(3))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("directions", [1, 4])
def test_drawn_estimates_have_the_mean_and_variance_of_the_closed_form(distribution, directions):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)).double()
    batch = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    gradient = flat(backprop(model, batch, mse))
    generator = torch.Generator().manual_seed(5)
    count = 3000 // directions
    drawn = torch.stack(
        [
            estimate(model, batch, directions=directions, distribution=distribution, generator=generator)
            for _ in range(count)
        ]
    )
    errors = drawn - gradient
    expected = forward_gradient_variance(gradient.numel(), directions, distribution)
    squares = errors.square().sum(1) / gradient.square().sum()
    assert abs(squares.mean() - expected) < 4 * squares.std() / count**0.5
    assert squares.std() / count**0.5 < 0.1 * expected
    # Of every coordinate, in units of its own standard error.
    z = errors.mean(0) / (errors.std(0) / count**0.5)
    assert z.abs().max() < 4 and 0.3 < z.square().mean() < 2.5


def test_along_a_scaled_basis_the_average_is_the_gradient_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1)).double()
    batch = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    size = sum(p.numel() for p in model.parameters())
    basis = [like(model, row) for row in torch.eye(size, dtype=torch.float64) * size**0.5]
    torch.testing.assert_close(
        estimate(model, batch, directions=basis), flat(backprop(model, batch, mse)), rtol=1e-12, atol=1e-14
    )


def test_an_estimate_never_points_uphill():
    model, batch = tiny(), tiny_batch()
    gradient = flat(backprop(model, batch, mse))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        tangent = torch.randn(3, dtype=torch.float64, generator=generator)
        dot = estimate(model, batch, directions=[like(model, tangent)]) @ gradient
        assert dot.item() == pytest.approx((gradient @ tangent).square().item(), rel=1e-10)


def test_grad_is_added_to_and_frozen_parameters_are_left_alone():
    model, batch = tiny(), tiny_batch()
    model[0].weight.requires_grad_(False)
    once = estimate(model, batch, generator=torch.Generator().manual_seed(1))
    forward_gradient(model, batch, mse, generator=torch.Generator().manual_seed(1))
    twice = flat({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(twice, 2 * once)
    assert model[0].weight.grad is None


def test_a_tied_weight_gets_one_tangent():
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randint(7, (3, 5))
    size = model.embed.weight.numel()
    basis = [like(model, row) for row in torch.eye(size, dtype=torch.float64) * size**0.5]
    assert list(basis[0]) == ["embed.weight"]
    torch.testing.assert_close(
        estimate(model, x, mean_square, directions=basis), flat(backprop(model, x, mean_square))
    )


@pytest.mark.parametrize("kind", ["batch norm", "own buffers"])
def test_buffers_move_as_in_one_forward_pass(kind):
    torch.manual_seed(1)
    model, x = MODELS[kind]()
    twin = copy.deepcopy(model)
    held = dict(model.named_buffers())
    for _ in range(2):
        forward_gradient(model, x, mean_square, directions=3)
        mean_square(twin, x)
    for name, buffer in twin.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
        assert model.get_buffer(name) is held[name] and not buffer.requires_grad


def test_dropout_masks_are_those_of_backpropagation_and_of_every_direction():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    batch = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)
    size = sum(p.numel() for p in model.parameters())
    basis = [like(model, row) for row in torch.eye(size, dtype=torch.float64) * size**0.5]
    torch.manual_seed(7)
    expected = flat(backprop(model, batch, mse))
    after = torch.get_rng_state()
    torch.manual_seed(7)
    torch.testing.assert_close(estimate(model, batch, directions=basis), expected)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(7)
    estimate(model, batch, directions=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), after)


def test_tangents_of_the_global_stream_share_no_numbers_with_the_masks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    batch = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)

    def draw() -> dict[str, torch.Tensor]:
        return {name: torch.randn_like(p) for name, p in model.named_parameters()}

    torch.manual_seed(3)
    tangents = [draw()]
    masks = torch.get_rng_state()
    mse(model, batch)
    tangents += [draw(), draw()]
    after = torch.get_rng_state()
    torch.set_rng_state(masks)
    expected = estimate(model, batch, directions=tangents)
    torch.manual_seed(3)
    torch.testing.assert_close(estimate(model, batch, directions=3), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_generator_makes_it_repeatable_and_the_global_stream_goes_on():
    model, batch = tiny(), tiny_batch()
    first, second = (
        estimate(model, batch, directions=2, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first, second)
    torch.manual_seed(0)
    first, second = (estimate(model, batch) for _ in range(2))
    assert not torch.equal(first, second)


def test_half_precision_keeps_its_dtype_and_averages_in_float32():
    model, batch = tiny(torch.bfloat16), tiny_batch(torch.bfloat16)
    signs = [like(model, torch.tensor(s)) for s in itertools.product((-1.0, 1.0), repeat=3)]
    got = estimate(model, batch, directions=signs)
    assert got.dtype == torch.bfloat16
    exact = flat(backprop(copy.deepcopy(model).double(), tuple(t.double() for t in batch), mse))
    torch.testing.assert_close(got.double(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_kept_for_a_backward_pass(kind):
    model, x = MODELS[kind]()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        forward_gradient(model, x, mean_square)
        assert not saved
        mean_square(model, x)
        assert saved


def test_hooks_see_a_training_pass_and_can_keep_what_they_saw():
    model, batch = tiny(), tiny_batch()
    seen = []
    model[1].register_forward_hook(lambda *a: seen.append((torch.is_grad_enabled(), a[2].detach())))
    with torch.no_grad():
        loss = forward_gradient(model, batch, mse)
    ((enabled, output),) = seen
    assert enabled and torch.equal(output.mean(0), model[:2](batch[0]).mean(0))
    # An input that requires a gradient ties the loss to no graph either.
    loss = forward_gradient(model, (batch[0].requires_grad_(), batch[1]), mse)
    assert not loss.requires_grad and not model[0].weight.grad.requires_grad


def test_gradient_descent_on_estimates_lowers_the_loss():
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    x = torch.randn(64, 4, dtype=torch.float64)
    batch = x, x @ torch.randn(4, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        losses.append(forward_gradient(model, batch, mse, generator=generator).item())
        optimizer.step()
    assert losses[-1] < 1e-3 * losses[0]


def vector_loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (vector_loss, r"loss_fn must return one real number, got a tensor of shape \(5,\)"),
        (lambda m, b: 1.0, "loss_fn must return one number as a tensor, got float"),
        (lambda m, b: m(b[0]).sum().long(), "got a tensor of shape .* and torch.int64"),
        (lambda m, b: torch.complex(m(b[0]).sum(), m(b[0]).sum()), "torch.complex128"),
    ],
)
def test_a_loss_that_is_no_number_is_refused_and_nothing_has_changed(loss_fn, message):
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        forward_gradient(model, tiny_batch(), loss_fn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_later_direction_that_fails_leaves_everything_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).double()
    before = copy.deepcopy(model.state_dict())
    calls = itertools.count()

    def loss_fn(model, batch):
        if next(calls) == 1:
            raise KeyError("second")
        return mse(model, batch)

    with pytest.raises(KeyError):
        forward_gradient(model, tiny_batch(), loss_fn, directions=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"directions": 0}, "directions must be an integer >= 1, got 0"),
        ({"directions": []}, r"directions must be an integer >= 1, got \[\]"),
        ({"directions": [{}]}, r"directions\[0\] must map .*0.bias.* to tensors, got \[\]"),
        ({"distribution": "gausian"}, "did you mean gaussian"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        forward_gradient(tiny(), tiny_batch(), mse, **kwargs)


def test_tangents_of_another_shape_and_unfit_parameters_are_named():
    model, batch = tiny(), tiny_batch()
    tangents = like(model, torch.ones(3, dtype=torch.float64))
    tangents["0.bias"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"tangents\['0.bias'\] must have shape \(1,\), got \(2,\)"):
        directional_derivative(model, batch, mse, tangents)
    with pytest.raises(ValueError, match="must have a parameter that requires a gradient"):
        forward_gradient(tiny().requires_grad_(False), batch, mse)
    with pytest.raises(ValueError, match=r"'0.weight' must be real .* torch.complex64"):
        forward_gradient(tiny(torch.complex64), batch, mse)
    with pytest.raises(ValueError, match=r"'0.weight' must hold numbers"):
        forward_gradient(tiny().to("meta"), batch, mse)


def test_an_operation_without_a_forward_rule_is_named():
    def loss_fn(model, batch):
        return functional.ctc_loss(
            model(batch[0])[:, None].expand(5, 2, 3).log_softmax(2),
            torch.ones(2, 1, dtype=torch.long),
            torch.tensor([5, 5]),
            torch.tensor([1, 1]),
        )

    with pytest.raises(
        NotImplementedError, match=r"model must be made of operations with a forward-mode rule: .*ctc"
    ):
        forward_gradient(tiny(), tiny_batch(), loss_fn)
    assert torch.backends.mha.get_fastpath_enabled()


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class New(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize("function", [Old, New])
def test_a_function_without_a_forward_rule_is_named(function):
    with pytest.raises(
        NotImplementedError, match=f"forward AD with {function.__name__}, an autograd.Function"
    ):
        forward_gradient(tiny(), tiny_batch(), lambda model, batch: function.apply(model(batch[0])).sum())
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        forward_gradient(tiny(), tiny_batch(), lambda model, batch: model(batch[0].T).sum())


def test_variance_falls_with_directions_and_checks_its_arguments():
    assert forward_gradient_variance(50) == 51
    assert forward_gradient_variance(50, 17) == 3
    assert forward_gradient_variance(50, 7, "rademacher") == 7
    with pytest.raises(ValueError, match="parameters must be an integer >= 1, got 0"):
        forward_gradient_variance(0)
