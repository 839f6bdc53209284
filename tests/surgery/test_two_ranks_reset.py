"""A reset under DistributedDataParallel leaves the same weights in every process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from gloo_pair import run_both
from thalweg.probe import dormant_neurons
from thalweg.surgery import reset_dormant

SCRIPT = Path(__file__).with_name("two_ranks_reset.py")
spec = importlib.util.spec_from_file_location("two_ranks_reset", SCRIPT)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


def test_replicas_reset_the_units_of_the_first_process_to_its_draws(tmp_path):
    found = torch.load(run_both(str(SCRIPT), tmp_path), weights_only=True)
    alone = ranks.model()
    torch.manual_seed(100)
    report = reset_dormant(alone, dormant_neurons(alone, ranks.batch(0)))
    assert report.units == {"1": (0, 1)}
    for rank in found:
        assert rank["units"] == report.units
        torch.testing.assert_close(rank["weights"], alone.state_dict(), rtol=0, atol=0)
