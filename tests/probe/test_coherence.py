"""Coherence of known sets of gradients, its conversions, and the noise scale that follows from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import (
    batch_coherence,
    coherence_of_batches,
    example_coherence,
    gradient_coherence,
    gradient_noise_scale,
    gradient_signal_to_noise,
    noise_scale_of_batches,
)
from thalweg.tasks import MLP


class Linear(nn.Module):
    """The loss of an example is its product with the weights: its gradient is the example itself."""

    def __init__(self, width, bias=False):
        super().__init__()
        self.inner = nn.Linear(width, 1, bias=bias).double()

    def forward(self, x):
        return self.inner(x)[:, 0]


def products(model, batch):
    return model(batch)


def coherence(gradients):
    return gradient_coherence(Linear(gradients.shape[1]), gradients.double(), products)


def test_equal_gradients_are_wholly_coherent():
    found = coherence(torch.ones(8, 3))
    assert (found.alpha, found.m_coherence, found.unbiased) == pytest.approx((1, 8, 1))


def test_orthogonal_gradients_are_at_the_limit():
    found = coherence(torch.eye(5))
    assert (found.alpha, found.m_coherence) == pytest.approx((1 / 5, 1))
    assert found.unbiased == pytest.approx(0)


def test_gradients_that_cancel_have_none():
    found = coherence(torch.tensor([[1.0, 2.0], [-1.0, -2.0]] * 4))
    assert (found.alpha, found.unbiased) == pytest.approx((0, -1 / 7))


def test_no_gradient_at_all_is_undefined():
    found = coherence(torch.zeros(4, 3))
    assert math.isnan(found.alpha) and math.isnan(found.m_coherence)
    assert gradient_noise_scale(Linear(3), torch.zeros(4, 3).double(), products).signal == 0


def problem():
    torch.manual_seed(0)
    batch = (torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,)))
    return MLP((5, 8, 3), seed=0).double(), batch


def classify(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def gradients_of(model, batch):
    rows = [
        torch.autograd.grad(classify(model, (x[None], y[None]))[0], list(model.parameters()))
        for x, y in zip(*batch, strict=True)
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def test_coherence_by_parameter_and_in_all_is_its_definition():
    model, batch = problem()
    found = gradient_coherence(model, batch, classify)
    columns = [g.flatten(1) for g in gradients_of(model, batch)]
    for (name, _), g in zip(model.named_parameters(), columns, strict=True):
        expected = g.mean(0).square().sum() / g.square().sum(1).mean()
        assert found.per_layer[name] == pytest.approx(expected.item())
    whole = torch.cat(columns, 1)
    assert found.alpha == pytest.approx((whole.mean(0).norm() ** 2 / whole.square().sum(1).mean()).item())
    # The mean over pairs of different examples, which no longer holds anyone's product with itself.
    gram = whole @ whole.T
    pairs = (gram.sum() - gram.trace()) / (40 * 39)
    assert found.unbiased == pytest.approx((pairs / (gram.trace() / 40)).item())
    assert found.loss == pytest.approx(classify(model, batch).mean().item())
    assert (found.examples, found.materialised) == (40, ())


def test_coherence_of_batches_leads_back_to_that_of_examples():
    """In expectation over independent examples, which all batches of a small population show exactly."""
    torch.manual_seed(0)
    population = torch.randn(6, 4, dtype=torch.float64) + 0.7
    alpha = (population.mean(0).square().sum() / population.square().sum(1).mean()).item()
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    found = coherence_of_batches([[population[pair].mean(0)] for pair in pairs])
    assert found.alpha == pytest.approx(batch_coherence(alpha, 2))
    assert example_coherence(found.alpha, 2) == pytest.approx(alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 1.0])
def test_conversions_are_inverse(alpha):
    assert example_coherence(batch_coherence(alpha, 32), 32) == pytest.approx(alpha)


def test_coherence_of_batches_takes_a_generator_and_names():
    gradients = ([torch.eye(3)[k], torch.ones(2)] for k in range(3))
    found = coherence_of_batches(gradients, names=("first", "second"))
    assert found.per_layer == pytest.approx({"first": 1 / 3, "second": 1})
    assert (found.examples, found.m_coherence) == (3, pytest.approx(3 * (1 / 3 + 2) / 3))


def test_noise_scale_is_its_definition_and_follows_from_coherence():
    model, batch = problem()
    found = gradient_noise_scale(model, batch, classify)
    columns = [g.flatten(1) for g in gradients_of(model, batch)]
    noise = sum(g.var(0).sum() for g in columns).item()
    signal = sum((g.mean(0).square() - g.var(0) / 40).sum() for g in columns).item()
    assert (found.noise, found.signal) == pytest.approx((noise, signal))
    assert found.simple == pytest.approx(noise / signal)
    alpha = gradient_coherence(model, batch, classify).unbiased
    assert found.simple == pytest.approx((1 - alpha) / alpha)
    last = columns[-1]
    scale = last.var(0).sum() / (last.mean(0).square() - last.var(0) / 40).sum()
    assert found.per_layer["2.bias"] == pytest.approx(scale.item()) and scale > 0


def test_noise_scale_estimates_are_unbiased():
    """Over all pairs of a population drawn with replacement, their means are the population's own numbers."""
    torch.manual_seed(0)
    population = torch.randn(7, 3, dtype=torch.float64) + 0.5
    model = Linear(3)
    found = [
        gradient_noise_scale(model, population[pair], products)
        for pair in torch.cartesian_prod(torch.arange(7), torch.arange(7))
    ]
    signal = population.mean(0).square().sum().item()
    noise = population.var(0, correction=0).sum().item()
    assert sum(one.signal for one in found) / 49 == pytest.approx(signal)
    assert sum(one.noise for one in found) / 49 == pytest.approx(noise)


def test_noise_scale_of_batches_agrees_with_that_of_examples():
    model, batch = problem()
    gradients = torch.cat([g.flatten(1) for g in gradients_of(model, batch)], 1)
    small = gradients.view(10, 4, -1).mean(1)
    found = noise_scale_of_batches(
        small.square().sum(1), gradients.mean(0).square().sum().item(), small_size=4, big_size=40
    )
    # The same analysis of variance from the batches' means.
    noise = 4 * small.var(0).sum().item()
    assert found.noise == pytest.approx(noise)
    assert found.signal == pytest.approx(gradients.mean(0).square().sum().item() - noise / 40)
    ones = noise_scale_of_batches(
        gradients.square().sum(1), gradients.mean(0).square().sum().item(), small_size=1, big_size=40
    )
    whole = gradient_noise_scale(model, batch, classify)
    assert (ones.simple, ones.signal) == pytest.approx((whole.simple, whole.signal))


def test_pure_noise_has_an_infinite_noise_scale():
    assert gradient_noise_scale(Linear(4), torch.eye(4).double(), products).simple > 1e12
    found = gradient_noise_scale(Linear(1), torch.tensor([[1.0], [-1.0]]).double(), products)
    assert found.simple == math.inf and found.signal == -1


def test_signal_to_noise_without_signal_is_one_over_the_batch():
    torch.manual_seed(0)
    batch = torch.randn(64, 4000, dtype=torch.float64)
    found = gradient_signal_to_noise(Linear(4000), batch, products)
    assert found.mean == pytest.approx(1 / 64, rel=0.1)
    assert gradient_signal_to_noise(Linear(4000), batch, products, unbiased=True).mean == pytest.approx(
        0, abs=2e-3
    )


def test_signal_to_noise_at_its_ends():
    batch = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    found = gradient_signal_to_noise(Linear(3), batch, products)
    assert found.ratio["inner.weight"].flatten().tolist() == [0, math.inf, 2]
    assert found.per_layer["inner.weight"] == found.mean == 1
    assert found.variance["inner.weight"].flatten().tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_noise_scale(Linear(2), torch.ones(1, 2).double(), products), "at least 2 examples"),
        (lambda: gradient_signal_to_noise(Linear(2), torch.ones(1, 2).double(), products), "got 1"),
        (lambda: coherence_of_batches([]), "at least one list of tensors"),
        (lambda: coherence_of_batches([[torch.ones(2)], [torch.ones(3)]]), r"gradients\[1\] must have"),
        (lambda: coherence_of_batches([[torch.ones(2)]], names=()), "names must hold 1 names, got 0"),
        (lambda: batch_coherence(1.5, 2), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: example_coherence(0.5, 0), "batch_size must be an integer >= 1, got 0"),
        (lambda: noise_scale_of_batches([], 1.0, small_size=1, big_size=2), "at least one squared norm"),
        (lambda: noise_scale_of_batches([1.0], 1.0, small_size=2, big_size=2), "big_size must be .* >= 3"),
        (lambda: noise_scale_of_batches([-1.0], 1.0, small_size=1, big_size=2), r"small must be in \[0, inf"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_gradient_may_be_one_tensor():
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    for gradients in (rows, list(rows)):
        found = coherence_of_batches(gradients)
        assert list(found.per_layer) == ["0"] and found.per_layer["0"] == found.alpha
        expected = rows.double().mean(0).square().sum() / rows.double().square().sum(1).mean()
        assert found.alpha == pytest.approx(expected.item(), rel=1e-6)
