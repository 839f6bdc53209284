"""Stability of SGD, against the map of second moments written out as a matrix, and against SGD itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional

from thalweg.probe import CurvatureGram, curvature_coherence, curvature_gram, ggn_operator, sgd_stability

SAMPLINGS = ("replacement", "bernoulli", "distinct")


def gram_of(factors: Tensor) -> CurvatureGram:
    """Of factors (n, k, d)."""
    n, k, d = factors.shape
    flat = factors.reshape(n * k, d)
    return CurvatureGram((flat @ flat.T).view(n, k, n, k), torch.zeros(n, dtype=torch.float64))


def gaussian(n: int, k: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment_map(factors: Tensor, lr: float, batch: int, sampling: str) -> Tensor:
    """E[J x J] as a matrix over vec(M), by summing over everything that a step can draw."""
    n, _, d = factors.shape
    eye = torch.eye(d, dtype=torch.float64)
    each = factors.mT @ factors

    def step(rows: list[int]) -> Tensor:
        jacobian = eye - lr / batch * sum(each[i] for i in rows) if rows else eye
        return torch.kron(jacobian, jacobian)

    if sampling == "bernoulli":
        share = batch / n
        total = torch.zeros(d * d, d * d, dtype=torch.float64)
        for subset in range(2**n):
            rows = [i for i in range(n) if subset >> i & 1]
            total += share ** len(rows) * (1 - share) ** (n - len(rows)) * step(rows)
        return total
    choose = torch.cartesian_prod if sampling == "replacement" else torch.combinations
    index = torch.arange(n)
    draws = choose(*[index] * batch) if sampling == "replacement" else choose(index, batch)
    draws = draws.view(-1, batch).tolist()
    return sum(step(rows) for rows in draws) / len(draws)


def threshold(factors: Tensor, batch: int, sampling: str) -> float:
    """The learning rate at which the spectral radius leaves 1, by bisection."""
    low, high = 1e-4, 10.0
    for _ in range(35):
        middle = (low + high) / 2
        radius = torch.linalg.eigvalsh(second_moment_map(factors, middle, batch, sampling)).abs().max()
        low, high = (low, middle) if radius > 1 + 1e-11 else (middle, high)
    return low


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("batch", "outputs"), [(1, 1), (2, 1), (2, 2)])
def test_the_exact_limit_is_where_the_enumerated_map_begins_to_grow(sampling, batch, outputs):
    factors = gaussian(6, outputs, 3)
    found = sgd_stability(gram_of(factors), 0.1, batch, sampling=sampling)
    assert found.limit == pytest.approx(threshold(factors, batch, sampling), rel=1e-5)
    assert found.limit <= min(found.gradient_descent, found.trace_limit) * (1 + 1e-9)


def test_sgd_itself_shrinks_below_the_limit_and_grows_above_it():
    factors = gaussian(20, 1, 6)
    vectors, source = factors[:, 0], torch.Generator().manual_seed(1)
    limit = sgd_stability(gram_of(factors), 0.1, 4, sampling="replacement").limit

    def growth(lr: float) -> float:
        """Of the mean square over many runs; few steps, since later its mean rests on ever rarer runs."""
        distance = torch.randn(20000, 6, generator=source, dtype=torch.float64)
        sizes = []
        for _ in range(12):
            rows = vectors[torch.randint(20, (20000, 4), generator=source)]
            distance = distance - lr / 4 * torch.einsum("rbd,rbe,re->rd", rows, rows, distance)
            sizes.append(distance.square().sum(1).mean().item())
        return sizes[-1] / sizes[-5]

    assert growth(0.8 * limit) < 0.95 and growth(1.2 * limit) > 1.05


def test_orthogonal_examples_have_the_closed_forms_of_both_papers():
    n, square = 6, 1.5**2
    gram = gram_of(1.5 * torch.eye(n, dtype=torch.float64)[:, None])
    for batch in (1, 2, 3):
        found = sgd_stability(gram, 0.1, batch, sampling="bernoulli")
        assert found.coherence == pytest.approx(1)
        assert found.gradient_descent == pytest.approx(2 * n / square)
        assert found.limit == pytest.approx(2 * batch / square)
        assert found.trace_limit == pytest.approx(2 * batch / square)
        assert found.coherence_limit == pytest.approx(n / square * min(2, (n / batch - 1) ** -0.5))


def test_equal_examples_are_as_stable_as_the_whole_batch():
    found = sgd_stability(gram_of(torch.ones(8, 1, 3, dtype=torch.float64)), 0.1, 1)
    assert found.coherence == pytest.approx(8)
    assert found.limit == pytest.approx(found.gradient_descent) == pytest.approx(2 / 3)


def test_coherence_is_that_of_the_matrices_written_out():
    factors = gaussian(7, 2, 5)
    each = factors.mT @ factors
    values, vectors = torch.linalg.eigh(each)
    roots = vectors @ torch.diag_embed(values.clamp_min(0).sqrt()) @ vectors.mT
    s = torch.stack([torch.stack([(a @ b).norm() for b in roots]) for a in roots])
    expected = torch.linalg.eigvalsh(s)[-1] / values[:, -1].max()
    assert curvature_coherence(gram_of(factors)) == pytest.approx(expected.item())


@pytest.mark.parametrize("seed", range(8))
def test_what_the_coherence_theorem_calls_unstable_is(seed):
    factors = gaussian(9, 1, 4, seed) * torch.linspace(0.2, 2, 9)[:, None, None].double()
    for batch in (1, 3):
        found = sgd_stability(gram_of(factors), 0.1, batch, sampling="bernoulli")
        assert found.limit <= found.coherence_limit * (1 + 1e-9)


def test_at_batch_size_one_the_trace_decides_as_the_first_paper_says():
    found = sgd_stability(gram_of(gaussian(20, 1, 6)), 0.1, 1)
    assert found.limit <= found.trace_limit <= 2 / found.trace
    assert found.gradient_descent > 2 * found.trace_limit


def test_the_whole_batch_has_the_limit_of_gradient_descent_when_none_repeats():
    gram = gram_of(gaussian(10, 2, 4))
    for sampling in ("bernoulli", "distinct"):
        found = sgd_stability(gram, 0.1, 10, sampling=sampling)
        assert found.limit == pytest.approx(found.gradient_descent)
    assert sgd_stability(gram, 0.1, 10, sampling="replacement").limit < found.gradient_descent


def test_the_verdict_is_about_the_learning_rate_asked():
    gram = gram_of(gaussian(6, 1, 3))
    limit = sgd_stability(gram, 1.0, 2).limit
    for factor in (0.9, 1.1):
        found = sgd_stability(gram, factor * limit, 2)
        assert found.stable is (factor < 1) and found.ratio == pytest.approx(factor)


def explicit_factors(model: nn.Module, loss_fn, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Each example's Gauss-Newton matrix, from its Jacobian and the Hessian of its loss."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    matrices = []
    for x, y in zip(inputs, targets, strict=True):
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            outputs = functional_call(model, named, (x[None],))
            parts = jacrev(lambda p, x=x: functional_call(model, p, (x[None],)).flatten())(named)
        jacobian = torch.cat([part.flatten(1) for part in parts.values()], 1)
        outer = hessian(lambda z, y=y, o=outputs: loss_fn(z.view_as(o), y[None]))(outputs.flatten())
        matrices.append(jacobian.T @ outer @ jacobian)
    return matrices


def test_the_gram_of_networks_is_that_of_explicit_matrices(problem):
    inputs = problem.inputs[:3]
    outputs = problem.model(inputs)
    if outputs.dim() == 2:
        targets = torch.tensor([0, 2, 1])
        loss_fn = functional.cross_entropy
    else:
        targets = torch.randn_like(outputs).detach()
        loss_fn = functional.mse_loss
    gram = curvature_gram(problem.model, loss_fn, inputs, targets)
    matrices = explicit_factors(problem.model, loss_fn, inputs, targets)
    expected = torch.stack([torch.stack([(a * b).sum() for b in matrices]) for a in matrices])
    torch.testing.assert_close(gram.alike, expected, rtol=1e-8, atol=1e-12)
    mean = sum(matrices) / len(matrices)
    assert gram.trace == pytest.approx(mean.trace().item())
    top = torch.linalg.eigvalsh(mean).flip(0)[:5]
    torch.testing.assert_close(gram.eigenvalues[:5], top, rtol=1e-8, atol=1e-12)
    with torch.no_grad():
        each = [loss_fn(problem.model(x[None]), y[None]) for x, y in zip(inputs, targets, strict=True)]
    torch.testing.assert_close(gram.losses, torch.stack(each), rtol=1e-9, atol=0)


def test_the_gram_has_the_eigenvalues_of_the_gauss_newton_operator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    operator = ggn_operator(
        lambda: model(inputs), lambda z: functional.cross_entropy(z, targets), model.parameters()
    )
    dense = torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=torch.float64)])
    found = curvature_gram(model, functional.cross_entropy, inputs, targets).eigenvalues
    torch.testing.assert_close(found[:12], torch.linalg.eigvalsh(dense).flip(0)[:12], rtol=1e-9, atol=1e-12)


def test_a_layer_alone_has_the_limit_of_its_blocks_which_is_not_below_that_of_all():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    inputs, targets = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    matrices = torch.stack(explicit_factors(model, functional.mse_loss, inputs, targets))
    whole = sgd_stability(curvature_gram(model, functional.mse_loss, inputs, targets), 0.1, 2).limit
    for layer, block in ((model[0], slice(0, 6)), (model[2], slice(6, 9))):
        model.requires_grad_(False)
        layer.requires_grad_(True)
        gram = curvature_gram(model, functional.mse_loss, inputs, targets)
        values, vectors = torch.linalg.eigh(matrices[:, block, block])
        # One output an example: its block has rank one.
        factors = (vectors[:, :, -1] * values[:, -1:].sqrt())[:, None]
        found = sgd_stability(gram, 0.1, 2, sampling="distinct").limit
        assert found == pytest.approx(threshold(factors, 2, "distinct"), rel=1e-6)
        assert found >= whole


def test_modes_gradients_and_random_state_stay_and_dropout_is_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = torch.get_rng_state()
    inputs, targets = torch.randn(5, 3), torch.randn(5, 1)
    before = torch.get_rng_state()
    first, second = (curvature_gram(model, functional.mse_loss, inputs, targets) for _ in range(2))
    assert torch.equal(first.blocks, second.blocks)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_no_curvature_means_no_limit():
    found = sgd_stability(gram_of(torch.zeros(4, 1, 2, dtype=torch.float64)), 0.1, 2)
    assert found.limit == math.inf and found.stable and found.ratio == 0 and math.isnan(found.coherence)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be in"),
        ({"batch_size": 7}, "batch_size must be at most the 6 examples, got 7"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"sampling": "epochs"}, "sampling must be one of bernoulli, distinct, replacement; got 'epochs'"),
        ({"rank": 0}, "rank must be an integer >= 1, got 0"),
    ],
)
def test_sgd_stability_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sgd_stability(gram_of(gaussian(6, 1, 3)), **{"lr": 0.1, "batch_size": 2, **arguments})


def test_curvature_gram_refuses():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="targets must be as many as inputs and at least one, got 2 for 3"):
        curvature_gram(model, functional.mse_loss, torch.ones(3, 2), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"scalar tensor, got shape \(1, 1\)|finite"):
        curvature_gram(
            model, lambda z, t: (z - t).square() * float("nan"), torch.ones(3, 2), torch.ones(3, 1)
        )
    with pytest.raises(ValueError, match="must have a parameter that requires a gradient"):
        curvature_gram(nn.ReLU(), functional.mse_loss, torch.ones(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gram_of_half_precision_weights_is_summed_in_float32(autocast):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64, bias=False), nn.ReLU(), nn.Linear(64, 1, bias=False))
    inputs, targets = torch.randn(12, 40).repeat(2, 1), torch.randn(24, 1)
    inputs[12:] *= 3  # no new directions: half of the eigenvalues are about zero
    if not autocast:
        model, inputs, targets = model.bfloat16(), inputs.bfloat16(), targets.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        gram = curvature_gram(model, functional.mse_loss, inputs, targets)
    own = gram.blocks.reshape(24, 24)
    # Inner products of whatever was rounded: no eigenvalue is negative.
    assert torch.linalg.eigvalsh(own)[0].item() > -1e-6 * own.diagonal().max().item()


@pytest.mark.parametrize("sampling", ["distinct", "replacement", "bernoulli"])
def test_more_directions_than_the_rank_do_not_raise_the_limit_above_the_tests(sampling):
    torch.manual_seed(0)
    gram = gram_of(torch.randn(40, 1, 400, dtype=torch.float64) / 20)
    exact = sgd_stability(gram, 2.5, 2, sampling=sampling, rank=40)
    short = sgd_stability(gram, 2.5, 2, sampling=sampling, rank=8)
    assert exact.limit <= short.limit <= min(short.trace_limit, 1.1 * exact.limit)
    assert exact.stable is short.stable
