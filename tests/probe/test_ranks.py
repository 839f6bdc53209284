"""Two ranks with half of the batch each read what one process reads on all of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from gloo_pair import run_both
from thalweg.probe import averaged_over_ranks, curvature_gram, hvp_operator

SCRIPT = Path(__file__).with_name("two_ranks_curvature.py")


def script():
    spec = importlib.util.spec_from_file_location("two_ranks_curvature", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ranks_read_what_one_process_reads_and_training_goes_on(tmp_path):
    first, second = torch.load(run_both(str(SCRIPT), tmp_path), weights_only=False)
    own, other = first.pop("failed"), second.pop("failed")
    assert own == 3 * ["loss_fn must return a finite loss, got nan"]
    assert other == 3 * ["loss_fn must succeed on every rank of group, and failed on another"]
    assert first == second

    model, inputs, targets = script().problem()
    alone = script().readings(model, inputs, targets) | script().grouped(model, inputs, targets)
    for name, values in alone.items():
        assert first[name] == pytest.approx(values, rel=1e-7, abs=1e-9), name
    gram = curvature_gram(model, cross_entropy, inputs[:4], targets[:4])
    assert first["gram"] == pytest.approx(gram.blocks.flatten().tolist(), abs=1e-12)
    gradient = torch.autograd.grad(cross_entropy(model(inputs), targets), list(model.parameters()))
    assert first["gradient"] == pytest.approx(torch.cat([g.flatten() for g in gradient]).tolist(), abs=1e-12)


def test_averaging_without_a_process_group_is_refused():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"after torch\.distributed\.init_process_group"):
        averaged_over_ranks(hvp_operator(lambda: w.square().sum(), [w]))
