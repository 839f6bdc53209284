"""A reset under DistributedDataParallel leaves the same weights in every process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from gloo_pair import run_both
from thalweg.probe import dormant_neurons
from thalweg.surgery import reset_dormant

SCRIPT = Path(__file__).with_name("two_ranks_reset.py")
spec = importlib.util.spec_from_file_location("two_ranks_reset", SCRIPT)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two gloo processes has in the end."""
    return torch.load(run_both(str(SCRIPT), tmp_path_factory.mktemp("ranks")), weights_only=True)


def test_replicas_reset_the_units_of_the_first_process_to_its_draws(found):
    alone = ranks.model()
    torch.manual_seed(100)
    report = reset_dormant(alone, dormant_neurons(alone, ranks.batch(0)))
    assert report.units == {"1": (0, 1)}
    for rank in found:
        assert rank["units"] == report.units
        torch.testing.assert_close(rank["weights"], alone.state_dict(), rtol=0, atol=0)


def test_the_remedy_for_dormant_units_keeps_replicas_alike(found):
    one, other = (rank["trained"] for rank in found)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    incoming = one["0.weight"]
    assert incoming[0].any() and incoming[1, 1:].any()  # dead for all, and for what the first process sees
    assert not (incoming[0, 1:] == incoming[1, 1:]).any()
