"""Models as users have them: arguments by name, outputs within an object, wrapped, in mid-step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from thalweg.probe import (
    ExampleForgetting,
    accuracy_gap,
    boundary_points,
    curvature_gram,
    dormant_neurons,
    effective_rank,
    example_gradient_norms,
    ggn_operator,
    gradient_starvation,
    grokking_progress,
    hutchinson,
    hvp_operator,
    input_energy,
    loss_line,
    neural_collapse,
    opposing_signals,
    plasticity,
    scale_dependence,
    softmax_collapse,
    spectral_density,
    top_eigenpairs,
    train_curve,
    xtrace,
)

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Named(nn.Module):
    """Takes its arguments by name and gives an object with logits, as transformers' models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, inputs, mask=None):
        return SimpleNamespace(logits=self.body(inputs if mask is None else inputs * mask))


BATCH = {"inputs": X, "mask": torch.ones(12, 4)}


def test_accuracy_of_a_model_that_takes_names_is_that_of_its_logits():
    model = Named()
    expected = (model.body(X).argmax(1) == LABELS).double().mean().item()
    found = accuracy_gap(model, (BATCH, LABELS), ((X, BATCH["mask"]), LABELS), batch_size=5)
    assert (found.train, found.test) == (expected, expected)


def test_curvature_gram_of_a_model_that_takes_names_is_that_of_its_logits():
    model = Named()
    found = curvature_gram(model, cross_entropy, BATCH, LABELS)
    torch.testing.assert_close(found.blocks, curvature_gram(model.body, cross_entropy, X, LABELS).blocks)


def test_boundary_and_grokking_read_logits_within_an_object():
    model = Named()
    torch.testing.assert_close(boundary_points(model, X), boundary_points(model.body, X))
    pairs, train = torch.randn(9, 4), torch.arange(9) < 5
    found, plain = (
        grokking_progress(one, pairs, 3, train, frequencies=[1]).restricted_loss
        for one in (model, model.body)
    )
    assert found == plain


def test_inputs_with_targets_are_refused_in_words():
    with pytest.raises(
        ValueError, match=r"the batch must be what Sequential takes, without targets: .* too many"
    ):
        dormant_neurons(Named().body, (X, LABELS))
    with pytest.raises(
        ValueError, match=r"the batch must be what Named takes, .* unexpected keyword argument 'y'"
    ):
        dormant_neurons(Named(), {"inputs": X, "y": LABELS})
    norms = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="the batch must be what Sequential takes, without targets"):
        loss_line(lambda m: m(X).sum(), norms, norms, norms, norm_batches=[(X, LABELS)])


def test_an_error_within_the_model_stays_its_own():
    class Broken(nn.Module):
        def forward(self, x):
            return len(3)

    with pytest.raises(TypeError, match="has no len"):
        dormant_neurons(Broken(), X, layers=[""])


def test_layers_behind_ddp_have_the_names_of_the_model_inside(process_group):
    model = Named().body
    assert input_energy(DistributedDataParallel(model), X, layers=["2"]) == input_energy(
        model, X, layers=["2"]
    )
    gram = curvature_gram(DistributedDataParallel(model), cross_entropy, X, LABELS)
    assert gram.trace == curvature_gram(model, cross_entropy, X, LABELS).trace


def test_scale_dependence_may_be_read_between_the_two_passes_of_a_step():
    model = Named().body
    storage = model[0].weight.data_ptr()
    loss = cross_entropy(model(X), LABELS)
    expected = torch.autograd.grad(loss, model[0].weight, retain_graph=True)[0]
    scale_dependence(model, X, "0.weight")
    scale_dependence(model, X, "2.weight")
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, expected)
    assert model[0].weight.data_ptr() == storage


def test_a_curve_is_trained_also_where_gradients_are_off():
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)

    def loss(model):
        return cross_entropy(model(X), LABELS)

    expected = train_curve(loss, model, model, other, steps=3).losses
    with torch.no_grad():
        assert train_curve(loss, model, model, other, steps=3).losses == expected


def test_presentations_may_be_told_in_lists_and_arrays():
    seen, again = ExampleForgetting(4), ExampleForgetting(4)
    for correct in ([True, False], [False, True]):
        seen.update([1, 3], correct)
        again.update(np.array([1, 3]), np.array(correct))
    assert seen.counts().events.tolist() == again.counts().events.tolist() == [0, 1, 0, 0]


def test_a_table_with_sparse_gradients_reads_as_one_with_dense_ones():
    def readings(sparse):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))
        tokens = torch.randint(9, (6, 2))
        targets = torch.arange(6) % 3
        batch, params = (tokens, targets), list(model.parameters())

        def each(model, batch):
            return cross_entropy(model(batch[0]), batch[1], reduction="none")

        def one_by_one(model, batch):  # looks at numbers, which vmap does not let it
            return each(model, batch) * (1 if batch[0].sum().item() >= 0 else 0)

        def loss(model=model):
            return each(model, batch).mean()

        ones = torch.ones(sum(p.numel() for p in params))
        return [
            hvp_operator(loss, params).matvec(ones),
            ggn_operator(lambda: model(tokens), lambda z: cross_entropy(z, targets), params).matvec(ones),
            example_gradient_norms(model, batch, each).norms,
            example_gradient_norms(model, batch, one_by_one, chunk_size=2).norms,
            curvature_gram(model, cross_entropy, tokens, targets).blocks,
            gradient_starvation(model, tokens, targets, chunk=1).strengths,
            torch.tensor(train_curve(loss, model, model, model, steps=2).losses),
        ]

    torch.testing.assert_close(readings(True), readings(False))


def test_what_is_no_module_is_refused_by_name():
    for probe in (
        lambda: dormant_neurons(lambda x: x, X),
        lambda: example_gradient_norms(lambda x: x, (X, LABELS), lambda m, b: m(b[0]).sum(1)),
        lambda: loss_line(lambda m: 0.0, lambda x: x, {}, {}),
    ):
        with pytest.raises(ValueError, match=r"model must be a torch.nn.Module, got function"):
            probe()


def test_losses_by_position_are_refused_with_what_to_do():
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="average over the positions of each example"):
        example_gradient_norms(model, (X, LABELS), lambda m, batch: m(batch[0]))


def test_arrays_and_lists_are_read_as_tensors():
    rows = X.double().numpy()
    assert effective_rank(rows) == effective_rank(X.double())
    losses = [[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [3.0, 1.0, 1.1]]
    assert opposing_signals(losses).rising == opposing_signals(torch.tensor(losses)).rising


def test_class_numbers_must_be_integers():
    with pytest.raises(ValueError, match=r"targets must be class numbers, integers, got torch.float32"):
        softmax_collapse(torch.zeros(12, 3), LABELS.float())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_part_is_run_and_not_looked_into():
    torch.manual_seed(0)
    inner, head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
    plain, model = (nn.Sequential(one, head, nn.ReLU()) for one in (inner, torch.jit.script(inner)))
    expected = dormant_neurons(plain, X, layers=["2"]).scores["2"]
    torch.testing.assert_close(dormant_neurons(model, X, layers=["2"]).scores["2"], expected)
    torch.testing.assert_close(dormant_neurons(model, X).scores["2"], expected)


def test_a_layer_with_a_normalised_weight_keeps_its_name_and_its_channels():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 5, 1))
            self.fc = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6))

        def forward(self, x):
            return self.fc(self.conv(x[..., None]).relu()[..., 0]).tanh()

    found = dormant_neurons(Normalised(), X)
    assert {name: scores.shape for name, scores in found.scores.items()} == {"conv": (5,), "fc": (6,)}


class Packed(nn.Module):
    """Gives logits and a loss, as many models do that are handed their targets."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, inputs, targets=None):
        logits = self.body(inputs)
        return logits, None if targets is None else cross_entropy(logits, targets)


@pytest.mark.parametrize(
    "probe",
    [
        lambda model: accuracy_gap(model, (X, LABELS), (X, LABELS)),
        lambda model: torch.cat([boundary_points(model, X), boundary_points(model, X, seed=1)]),
        lambda model: curvature_gram(model, cross_entropy, X, LABELS).blocks,
        lambda model: gradient_starvation(model, X, LABELS).strengths,
        lambda model: gradient_starvation(model, X, LABELS, chunk=1).strengths,
        lambda model: neural_collapse(model, (X, LABELS)).nc1,
        lambda model: plasticity(model, X, tasks=1, steps=2).score,
        lambda model: scale_dependence(model, X, next(name for name, _ in model.named_parameters())),
    ],
)
def test_of_a_tuple_the_first_is_what_the_model_gives(probe):
    model = Packed()
    found, expected = probe(model), probe(model.body)
    assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected


def test_targets_may_go_into_the_model_too():
    model = Packed()
    found = accuracy_gap(model, ((X, LABELS), LABELS), ({"inputs": X, "targets": LABELS}, LABELS))
    assert found.train == found.test == (model.body(X).argmax(1) == LABELS).double().mean().item()


def test_one_logit_for_yes_or_no_has_no_classes():
    model, yes = nn.Linear(4, 1), LABELS.clamp_max(1)
    with pytest.raises(ValueError, match="train logit for each of two classes or more, got one logit"):
        accuracy_gap(model, (X, yes), (X, yes))
    with pytest.raises(ValueError, match=r"logits must be of two classes or more, got shape \(12, 1\)"):
        softmax_collapse(model(X), torch.zeros_like(yes))
    with pytest.raises(ValueError, match="logits of two classes or more, got one"):
        boundary_points(model, X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: accuracy_gap(m, X, (X, LABELS)), "train must be a pair of inputs and targets, got Tensor"),
        (
            lambda m: accuracy_gap(m, (X, LABELS), [X]),
            "test must be a pair of inputs and targets, got list of 1",
        ),
        (lambda m: neural_collapse(m, X), "data must be a pair of inputs and targets, got Tensor"),
        (
            lambda m: example_gradient_norms(m, (X, LABELS), nn.CrossEntropyLoss(reduction="none")),
            "a function of the model and a batch, got CrossEntropyLoss, one of outputs and targets",
        ),
        (lambda m: hvp_operator(m(X).sum(), m.parameters()), "loss_fn must be a function .* got Tensor"),
        (lambda m: hutchinson(m), "operator must be a CurvatureOperator, .* got Packed"),
        (lambda m: xtrace(m), "operator must be a CurvatureOperator, .* got Packed"),
        (lambda m: spectral_density(m), "operator must be a CurvatureOperator, .* got Packed"),
        (lambda m: top_eigenpairs(lambda: m(X)), "operator must be a CurvatureOperator, .* got function"),
    ],
)
def test_what_is_easily_mistaken_is_named(call, message):
    model = Packed()
    model.forward = model.body.forward
    with pytest.raises(ValueError, match=message):
        call(model)
