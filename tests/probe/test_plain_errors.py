"""What is no argument of the kind that is meant is refused by name, before anything is measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thalweg import probe
from thalweg.watch.latent_phases import phases_of_run

NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
X, LABELS = torch.randn(8, 3), torch.arange(8) % 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: probe.dormant_neurons(NET, X, layers="1"),
        lambda: probe.hub_neurons(NET, X, layers="1"),
        lambda: probe.saturated_units(NET, X, layers="1"),
        lambda: probe.feature_ranks(NET, X, layers="1"),
        lambda: probe.feature_diversity(NET, X, layers="1"),
        lambda: probe.neural_collapse(NET, (X, LABELS), layers="1"),
        lambda: probe.local_complexity(NET, X, radius=0.1, layers="1"),
        lambda: probe.singular_agreement(NET, NET, layers="1"),
        lambda: probe.layer_barriers(lambda m: m(X).square().mean(), NET, NET, NET, layers="1"),
    ],
)
def test_the_letters_of_one_name_are_not_taken_for_names(call):
    with pytest.raises(ValueError, match=r"layers must be several names, such as \['1'\], got the string"):
        call()


def test_inputs_of_has_its_own_name():
    with pytest.raises(ValueError, match="inputs_of must be several names"):
        probe.dormant_neurons(NET, X, inputs_of="2")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe.stability_limit(0.1), "optimizer must be a torch.optim.Optimizer, got float"),
        (lambda: probe.preconditioner_of(0.1, []), "optimizer must be a torch.optim.Optimizer, got float"),
        (
            lambda: probe.effective_learning_rate(0.1, NET, steps="gradient"),
            "optimizer must be a torch.optim.Optimizer, got float",
        ),
        (lambda: probe.plot_plane("a"), "plane must be a LossPlane, as loss_plane gives it, got str"),
        (lambda: probe.plot_barriers("a"), "barriers must be LayerBarriers.*got str"),
        (lambda: probe.plot_phases("a"), "phases must be Phases.*got str"),
        (lambda: probe.plot_paths({"a": 1}), r"paths\['a'\] must be a LossPath.*got int"),
        (lambda: phases_of_run("runs.db", 1), "store must be a RunStore.*got str"),
        (lambda: probe.gradient_starvation(NET, X, [0, 1]), "targets must be a tensor, got list"),
        (lambda: probe.output_logits([1.0]), "logits must be a tensor, got list"),
        (lambda: probe.opposing_signals(None), "losses must be a tensor, an array or rows of numbers"),
    ],
)
def test_what_is_of_another_kind_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("size", "vertices"), [(3, 6), (30, 40)])
def test_a_small_space_has_as_many_vertices_as_fit_it(size, vertices):
    net, x = nn.Sequential(nn.Linear(size, 6), nn.ReLU()), torch.randn(5, size)
    found = probe.local_complexity(net, x, radius=0.5)
    assert found.vertices == vertices
    assert torch.equal(found.points, probe.local_complexity(net, x, radius=0.5, vertices=vertices).points)
    tokens = nn.Sequential(nn.Embedding(7, size), nn.Flatten(), nn.Linear(2 * size, 6), nn.ReLU())
    ids = torch.arange(8).view(4, 2) % 7
    assert probe.local_complexity(tokens, ids, radius=0.5, at="0").vertices == min(40, 4 * size)


def test_a_loss_of_minus_infinity_is_no_best_loss():
    losses = {0.1: 1.0, 1.0: -float("inf"), 10.0: float("nan")}
    found = probe.learning_rate_sensitivity(losses.__getitem__, losses, initial_loss=3.0)
    assert found.best_loss == 1.0 and found.failed == (1.0, 10.0)
    assert found.sensitivity == pytest.approx(4 / 3)
