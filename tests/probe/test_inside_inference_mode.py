"""Probes that need gradients, called from an evaluation loop: Lightning's, say, runs in inference mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.probe import (
    backward_signal,
    example_gradient_norms,
    gauss_newton_sharpness,
    gradient_starvation,
    line_curvature,
    opposing_gradients,
    plasticity,
    scale_dependence,
    sharpness,
    top_subspace,
    train_curve,
)

torch.manual_seed(0)
MODEL, OTHER = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
X, LABELS = torch.randn(12, 4), torch.arange(12) % 3
PARAMS = list(MODEL.parameters())


def each(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def loss(model=MODEL):
    return cross_entropy(model(X), LABELS)


PROBES = {
    "sharpness": lambda: sharpness(loss, PARAMS).top,
    "gauss-newton": lambda: (
        gauss_newton_sharpness(lambda: MODEL(X), lambda z: cross_entropy(z, LABELS), PARAMS).top
    ),
    "subspace": lambda: top_subspace(loss, PARAMS, 2).share,
    "norms": lambda: example_gradient_norms(MODEL, (X, LABELS), each).norms.tolist(),
    "opposing": lambda: opposing_gradients(MODEL, (X, LABELS), each, [0], [1]).cosine,
    "starvation": lambda: gradient_starvation(MODEL, X, LABELS).strengths.tolist(),
    "one by one": lambda: gradient_starvation(MODEL, X, LABELS, chunk=1).strengths.tolist(),
    "plasticity": lambda: plasticity(MODEL, X, steps=2, tasks=1, rates=[0.1]).score,
    "scale": lambda: scale_dependence(MODEL, X, "0.weight"),
    "signal": lambda: backward_signal(MODEL, X).norms,
    "line": lambda: line_curvature(loss, MODEL, MODEL, OTHER).curvatures,
    "curve": lambda: train_curve(loss, MODEL, MODEL, OTHER, steps=2).losses,
}


@pytest.mark.parametrize("name", PROBES)
def test_readings_are_those_of_outside_and_training_goes_on(name):
    expected = PROBES[name]()
    waiting = loss()
    with torch.inference_mode():
        found = PROBES[name]()
        assert torch.is_inference_mode_enabled()
    assert found == pytest.approx(expected)
    assert not any(p.is_inference() for p in PARAMS)
    waiting.backward()
