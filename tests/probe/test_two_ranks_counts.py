"""Probes that two processes share, each with its part of the data, say what one process says of the whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from gloo_pair import run_both
from thalweg.probe import ExampleForgetting, attention_logits, output_logits

SCRIPT = Path(__file__).with_name("two_ranks_counts.py")
spec = importlib.util.spec_from_file_location("two_ranks_counts", SCRIPT)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What each of two gloo processes reports."""
    path = run_both(str(SCRIPT), tmp_path_factory.mktemp("ranks"))
    return torch.load(path)


def whole(parts):
    return tuple(torch.cat(both) for both in zip(*parts, strict=True))


def test_forgetting_events_are_those_of_one_process(findings):
    single = ExampleForgetting(ranks.EXAMPLES)
    for step in range(ranks.STEPS):
        single.update(*whole(ranks.part(step, rank) for rank in range(2)))
    assert single.counts().total_events > 10
    for found in findings:
        state = single.state_dict()
        assert all(torch.equal(found["forgetting"][name], state[name]) for name in state)


def test_output_logits_are_those_of_one_process(findings):
    expected = vars(output_logits(*whole(ranks.logits(rank) for rank in range(2))))
    assert expected["examples"] == 5
    for found in findings:
        assert found["output"] == pytest.approx(expected, rel=1e-6)


def test_attention_logits_are_those_of_one_process_and_carry_its_names(findings):
    expected = attention_logits(*ranks.model_and_tokens())
    for found in findings:
        assert found["attention"]["largest"] == pytest.approx(expected.largest, rel=1e-6)
        assert list(found["attention"]["per_head"]) == ["blocks.0.attention", "blocks.1.attention"]
        for name, heads in expected.per_head.items():
            torch.testing.assert_close(found["attention"]["per_head"][name], heads)
