from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from thalweg.nn import RandomizedLinear, convert, randomized_linear_variance

DISTRIBUTIONS = ["gaussian", "rademacher", "sparse"]
DRAWS = 2000


def pair(*shape, **options):
    """A plain layer, its randomised twin with the same numbers, and an input."""
    torch.manual_seed(0)
    dtype = options.pop("dtype", torch.float32)
    plain = nn.Linear(shape[-1], 5, bias=options.pop("bias", True), dtype=dtype)
    return plain, RandomizedLinear.of(copy.deepcopy(plain), **options), torch.randn(shape, dtype=dtype)


def gradients(layer, x, weights=None):
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    g = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).contiguous()
    out.backward(g)
    return out.detach(), leaf.grad, [p.grad for p in layer.parameters()], g


def kept_bytes(run, x, but=()):
    """What autograd holds on to between the passes, each memory once, parameters left out."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(x)
    outside = {p.untyped_storage().data_ptr() for p in but}
    return out, sum(size for place, size in seen.items() if place not in outside)


@pytest.mark.parametrize("shape", [(40, 7), (4, 10, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_input_gradient_and_bias_gradient_are_those_of_linear_to_the_bit(shape, bias):
    plain, randomized, x = pair(*shape, bias=bias, ratio=0.1)
    for one, two in zip(gradients(plain, x)[:2], gradients(randomized, x)[:2], strict=True):
        assert torch.equal(one, two)
    if bias:
        assert torch.equal(plain.bias.grad, randomized.bias.grad)
    assert not torch.allclose(plain.weight.grad, randomized.weight.grad)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weight_gradient_is_unbiased_with_the_variance_of_the_closed_form(distribution):
    plain, randomized, x = pair(20, 3, ratio=0.25, distribution=distribution, dtype=torch.float64)
    x[0] *= 5  # one heavy row, where the two distributions differ most
    exact, g = gradients(plain, x)[2][0], gradients(plain, x)[3]
    expected = randomized_linear_variance(x, g, 5, distribution).projection
    draws = torch.stack([gradients(randomized, x)[2][0] for _ in range(DRAWS)])
    assert (draws - exact).square().sum((1, 2)).mean().item() == pytest.approx(expected, rel=0.06)
    # The mean of so many draws is as far away as chance puts it: about the variance over their number.
    assert (draws.mean(0) - exact).square().sum().item() < 3 * expected / DRAWS


def test_variances_are_expectations_over_all_sign_vectors_and_over_all_batches():
    torch.manual_seed(1)
    x, g = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    exact = g.T @ x
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    each = torch.stack([torch.outer(s @ g, s @ x) for s in signs])
    found = randomized_linear_variance(x, g, 1)
    assert torch.allclose(each.mean(0), exact)
    assert found.projection == pytest.approx((each - exact).square().sum((1, 2)).mean().item(), rel=1e-10)
    assert randomized_linear_variance(x, g, 4).projection == pytest.approx(found.projection / 4)
    rows = torch.einsum("bi,bo->boi", x, g)
    assert found.sampling == pytest.approx(6 * rows.var(0, correction=1).sum().item(), rel=1e-10)
    assert randomized_linear_variance(x[:1], g[:1], 1).sampling != found.sampling  # NaN for one row


def test_sparse_variance_is_the_expectation_over_all_places_and_signs():
    torch.manual_seed(1)
    x, g = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    exact = g.T @ x
    found = []
    for places in itertools.product(range(3), repeat=4):
        for signs in itertools.product((-1.0, 1.0), repeat=4):
            s = torch.zeros(3, 4, dtype=torch.float64)
            s[list(places), range(4)] = torch.tensor(signs, dtype=torch.float64)
            found.append((s @ g).T @ (s @ x))
    each = torch.stack(found)
    assert torch.allclose(each.mean(0), exact)
    expected = (each - exact).square().sum((1, 2)).mean().item()
    assert randomized_linear_variance(x, g, 3).projection == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("at_once", [1 << 20, 64])
def test_both_passes_draw_the_same_matrix_and_every_step_another(distribution, at_once, monkeypatch):
    """With G = X the estimate is (SX)^T (SX) / p: symmetric, and never negative along any direction."""
    monkeypatch.setattr("thalweg.nn.randomized_gradient.AT_ONCE", at_once)  # in pieces
    torch.manual_seed(0)
    layer = RandomizedLinear(4, 4, bias=False, ratio=0.3, distribution=distribution, dtype=torch.float64)
    x = torch.randn(30, 4, dtype=torch.float64)
    found = []
    for _ in range(2):
        layer.zero_grad()
        layer(x).backward(x)
        found.append(layer.weight.grad.clone())
        assert torch.allclose(found[-1], found[-1].T)
        assert torch.linalg.eigvalsh(found[-1]).min() > -1e-12
    assert not torch.allclose(*found)


@pytest.mark.parametrize("distribution", ["rademacher", "sparse"])
def test_pieces_of_a_projection_are_drawn_independently(distribution, monkeypatch):
    monkeypatch.setattr("thalweg.nn.randomized_gradient.AT_ONCE", 64)
    plain, randomized, x = pair(50, 3, ratio=0.9, distribution=distribution, dtype=torch.float64)
    draws = torch.stack([gradients(randomized, x)[2][0] for _ in range(500)])
    exact, g = gradients(plain, x)[2][0], gradients(plain, x)[3]
    expected = randomized_linear_variance(x, g, 45).projection
    assert (draws - exact).square().sum((1, 2)).mean().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_bytes_are_those_of_the_projection(dtype):
    plain, randomized, x = pair(4, 50, 6, ratio=0.1, dtype=dtype)
    for layer, rows in ((plain, 200), (randomized, 20)):
        seed = 0 if layer is plain else 8
        _, held = kept_bytes(layer, x, but=layer.parameters())
        assert held == rows * 6 * dtype.itemsize + seed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, held = kept_bytes(RandomizedLinear(6, 5, ratio=0.1), x.float())
    out.sum().backward()
    assert out.dtype is torch.bfloat16
    assert held < 20 * 6 * 2 + 8 + 2 * (6 * 5 * 4)  # in bfloat16; the weight, perhaps in both types


def test_a_compiled_layer_keeps_as_little_and_gives_the_same():
    torch.manual_seed(0)
    layers = [RandomizedLinear(6, 16, ratio=0.1), nn.GELU(), RandomizedLinear(16, 4, ratio=0.1)]
    model, x = nn.Sequential(*layers), torch.randn(200, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for run in (model, compiled):
        model.zero_grad()
        torch.manual_seed(1)
        with torch._inductor.config.patch(fallback_random=True):  # seeds from the generator that eager uses
            out, held = kept_bytes(run, x, but=(*model.parameters(), x))
        out.square().sum().backward()
        found.append([out.detach(), *[p.grad.clone() for p in model.parameters()]])
        assert held <= 4 * (20 * 6 + 20 * 16 + 200 * 16) + 16  # GELU keeps its own input
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_layer_draws_one_matrix_for_both_passes(backend):
    """With torch's own settings, under which random numbers may be drawn anew in the backward pass."""
    _, layer, x = pair(16, 4, ratio=0.5)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for seed in range(3):
        found = []
        for run in (layer, compiled):
            torch.manual_seed(seed)
            found.append(
                [t for one in gradients(run, x)[1:3] for t in (one if isinstance(one, list) else [one])]
            )
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_batches_of_many_sizes_compile_once_and_export_in_evaluation():
    _, layer, x = pair(100, 4, ratio=0.29)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for rows in (30, 41, 52, 63, 100):
        found = []
        for run in (layer, compiled):
            torch.manual_seed(rows)
            found.append(gradients(run, x[:rows])[2])
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))
    assert counter.frame_count <= 2  # for one size, and then for all
    batch = {0: torch.export.Dim("batch", min=2, max=100)}
    exported = torch.export.export(layer.eval(), (x[:9],), dynamic_shapes=(batch,)).module()
    assert torch.equal(exported(x), layer(x))


def test_what_a_relu_or_a_sibling_keeps_is_not_saved():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    before = nn.Linear(6, 16)

    def held(*layers):
        def run(x):
            hidden = before(x).relu()
            return sum(layer(hidden) for layer in layers)

        return kept_bytes(
            run, x, but=(*before.parameters(), *[p for la in layers for p in la.parameters()], x)
        )[1]

    plain, small = nn.Linear(16, 4), RandomizedLinear(16, 4, ratio=0.1)
    assert held(small) > held(plain)


def test_forward_mode_sees_the_plain_layer():
    plain, layer, x = pair(20, 4, ratio=0.2)
    tangents = (torch.randn(20, 4),)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), tangents), torch.func.jvp(plain, (x,), tangents))


def test_in_evaluation_or_with_as_many_samples_as_rows_it_is_linear():
    for options, prepare in (({"ratio": 0.1}, nn.Module.eval), ({"ratio": 1.0}, nn.Module.train)):
        plain, randomized, x = pair(20, 3, **options)
        prepare(randomized)
        assert torch.equal(gradients(plain, x)[2][0], gradients(randomized, x)[2][0])
    layer = RandomizedLinear(3, 3, ratio=0.1, least=4, most=6)
    assert [layer.samples(rows) for rows in (1, 3, 30, 50, 1000)] == [1, 3, 4, 5, 6]
    assert RandomizedLinear(3, 3, ratio="0.5").samples(100) == 50
    exact = [RandomizedLinear(3, 3, ratio=ratio).samples(100) for ratio in (0.29, 0.57, 0.58, 0.999)]
    assert exact == [29, 57, 58, 99]
    assert RandomizedLinear(3, 3)(torch.ones(0, 3)).shape == (0, 3)


def test_checkpointing_replays_the_seed():
    _, randomized, x = pair(40, 3, ratio=0.1)
    results = []
    for use in (
        lambda leaf: randomized(leaf),
        lambda leaf: checkpoint(randomized, leaf, use_reentrant=False),
    ):
        torch.manual_seed(7)
        randomized.zero_grad()
        use(x.clone().requires_grad_()).square().sum().backward()
        results.append(randomized.weight.grad.clone())
    assert torch.equal(*results)


def test_a_model_is_converted_in_one_line_and_its_state_dict_fits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    made = convert(model, {nn.Linear: RandomizedLinear.of}, skip=["2"])
    assert type(made[0]) is RandomizedLinear and type(made[2]) is nn.Linear
    assert type(model[0]) is nn.Linear
    x = torch.randn(30, 6)
    assert torch.equal(made(x), model(x))
    made.load_state_dict(model.state_dict())
    model.load_state_dict(made.state_dict())
    exported = torch.export.export(made, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-6)


def test_randomized_linear_refuses():
    for argument, value in (("ratio", 0), ("ratio", 1.5), ("least", 0), ("most", 0), ("distribution", "dct")):
        with pytest.raises(ValueError, match=f"{argument} must be .* got {value!r}"):
            RandomizedLinear(2, 3, **{argument: value})
    with pytest.raises(
        ValueError, match=r"module '0' .* layer must be a plain nn\.Linear, got RandomizedLinear"
    ):
        convert(nn.Sequential(RandomizedLinear(2, 2)), {nn.Linear: RandomizedLinear.of})
    with pytest.raises(ValueError, match=r"inputs \(4, 2\), got \(3, 2\)"):
        randomized_linear_variance(torch.ones(4, 2), torch.ones(3, 2), 1)
    with pytest.raises(ValueError, match="samples must be an integer >= 1, got 0"):
        randomized_linear_variance(torch.ones(4, 2), torch.ones(4, 2), 0)
    x = torch.ones(20, 2, requires_grad=True)
    (g,) = torch.autograd.grad(RandomizedLinear(2, 3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_functional_gradients_are_those_of_the_backward_pass_for_each_example_too(distribution):
    _, layer, x = pair(3, 12, 7, ratio=0.4, distribution=distribution)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    def backward(x):
        torch.manual_seed(1)
        layer.zero_grad()
        loss(parameters, x).backward()
        return {name: p.grad.clone() for name, p in parameters.items()}

    torch.manual_seed(1)
    for name, grad in torch.func.grad(loss)(parameters, x).items():
        assert torch.equal(grad, backward(x)[name])
    torch.manual_seed(1)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="same")(parameters, x)
    for index, example in enumerate(x):
        expected = backward(example)
        assert all(torch.allclose(each[name][index], expected[name], atol=1e-4) for name in expected)
    with torch.no_grad():
        x[1:] = x[0]
    torch.manual_seed(1)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(parameters, x)
    assert not torch.allclose(each["weight"][0], each["weight"][1])
