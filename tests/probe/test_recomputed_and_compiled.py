"""Curvature and per-example gradients of models that recompute their activations, or are compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from thalweg.probe import (
    curvature_gram,
    example_gradient_norms,
    feature_ranks,
    gauss_newton_sharpness,
    ggn_operator,
    gradient_starvation,
    hvp_operator,
    opposing_gradients,
    sharpness,
    top_subspace,
)

INPUTS = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Classifier(nn.Module):
    """An attention block, computed anew in the backward pass unless ``reentrant`` is None, and a head."""

    def __init__(self, reentrant: bool | None):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head, self.reentrant = Attention(), nn.Linear(8, 3), reentrant

    def forward(self, x):
        # Inputs that require a gradient, as transformers makes them where the embedding is frozen.
        x = x.detach().requires_grad_()
        if self.reentrant is None:
            return self.head(self.block(x).mean(1))
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant).mean(1))


def loss_of(model):
    return lambda: cross_entropy(model(INPUTS), LABELS)


def each(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_products_of_a_checkpointed_model_are_those_of_the_plain_one():
    plain, saving = Classifier(None), Classifier(False)
    direction = torch.randn(sum(p.numel() for p in plain.parameters()))
    hessians = [hvp_operator(loss_of(m), m.parameters()).matvec(direction) for m in (plain, saving)]
    torch.testing.assert_close(*hessians)
    gauss_newton = [
        ggn_operator(lambda m=m: m(INPUTS), lambda z: cross_entropy(z, LABELS), m.parameters())
        for m in (plain, saving)
    ]
    torch.testing.assert_close(*(one.matvec(direction) for one in gauss_newton))


@pytest.mark.filterwarnings("ignore:.*donated buffers")
def test_sharpness_of_a_compiled_model_is_that_of_the_plain_one():
    model = Classifier(None)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(INPUTS).sum().backward()  # it is compiled by now
    options = {"top": 2, "iterations": 30, "tol": 1e-4}
    plain = sharpness(loss_of(model), model.parameters(), **options)
    assert sharpness(loss_of(compiled), model.parameters(), **options).eigenvalues == plain.eigenvalues
    output = {"loss_fn": lambda z: cross_entropy(z, LABELS), "params": list(model.parameters())}
    expected = gauss_newton_sharpness(lambda: model(INPUTS), **output)
    assert gauss_newton_sharpness(lambda: compiled(INPUTS), **output).top == expected.top


# A gradient of chosen tensors does not reach them: they would count as unused, and the answer would be wrong.
def test_reentrant_checkpoints_are_refused_since_their_parameters_are_in_no_graph():
    model = Classifier(True)
    batch, params = (INPUTS, LABELS), list(model.parameters())
    probes = [
        lambda: sharpness(loss_of(model), params),
        lambda: gauss_newton_sharpness(lambda: model(INPUTS), lambda z: cross_entropy(z, LABELS), params),
        lambda: top_subspace(loss_of(model), params, 2),
        lambda: example_gradient_norms(model, batch, each),
        lambda: opposing_gradients(model, batch, each, [0], [1]),
        lambda: curvature_gram(model, cross_entropy, INPUTS, LABELS),
        lambda: gradient_starvation(model, INPUTS, LABELS),
    ]
    for probe in probes:
        with pytest.raises(ValueError, match="must not run activation checkpointing with use_reentrant=True"):
            probe()


@pytest.mark.parametrize("reentrant", [None, False])
def test_what_vmap_cannot_take_has_its_features_one_by_one(reentrant):
    model = Classifier(reentrant)
    found = gradient_starvation(model, INPUTS, LABELS)
    expected = gradient_starvation(Classifier(None), INPUTS, LABELS, chunk=1)
    torch.testing.assert_close(found.strengths, expected.strengths)
    torch.testing.assert_close(found.margins, expected.margins)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x, scale=None):
        return self.head(self.lstm(x if scale is None else x * scale)[0][:, -1])


def test_a_recurrent_network_has_features_also_with_arguments_that_are_no_tensors():
    model = Recurrent()
    found = gradient_starvation(model, {"x": INPUTS, "scale": 1.0}, LABELS)
    margins = []
    for x, label in zip(INPUTS, LABELS, strict=True):
        logits = model(x[None])[0]
        margins.append(logits[label] - logits[torch.arange(3) != label].logsumexp(0))
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(m, list(model.parameters()))]) for m in margins
    ]
    torch.testing.assert_close(
        found.strengths, torch.linalg.svdvals(torch.stack(rows)).double(), rtol=1e-4, atol=1e-5
    )


def test_parts_that_were_compiled_on_their_own_are_heard_and_keep_the_short_way():
    plain, batch = Classifier(None), (INPUTS, LABELS)
    model = Classifier(None)
    model.block = torch.compile(model.block, backend="aot_eager")
    model(INPUTS).sum().backward()  # it is compiled by now
    found = example_gradient_norms(model, batch, each)
    assert found.materialised == ()
    torch.testing.assert_close(found.norms, example_gradient_norms(plain, batch, each).norms)
    inside = feature_ranks(model, INPUTS, layers=["block._orig_mod.qkv"])
    assert list(inside.values()) == list(feature_ranks(plain, INPUTS, layers=["block.qkv"]).values())
