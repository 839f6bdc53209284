"""Output logits that move all together are named; a network that grows sure of itself is not."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.findings.planted import logit_drift as planted_runs
from torch import nn
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.logit_drift import OutputLogitDrift
from thalweg.watch.sensors.partition import log_z

NAME = "output-logit drift"


def moment(output, targets):
    model = tasks.MLP((8, 4), seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Moment(1, dict(model.named_parameters()), opt, model, output=output, targets=targets)


def test_the_reading_is_the_mean_of_log_z_over_what_counts():
    logits = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.zeros(6, 3, dtype=torch.long)
    targets[2] = -100
    (raw,) = log_z.read(moment(logits, targets))
    rows = [logits[b, t].tolist() for b in range(6) for t in range(3) if b != 2]
    assert raw.value == pytest.approx(sum(math.log(sum(map(math.exp, row))) for row in rows) / 15)
    assert raw.extra["mean logit"] == pytest.approx(sum(map(sum, rows)) / 75)


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.long)),
        (torch.randn(4, 3), torch.randn(4, 3)),
        (torch.randn(4, 3), torch.zeros(5, dtype=torch.long)),
        (torch.randn(4, 3), torch.full((4,), -100)),
        (torch.randn(4), torch.zeros(4, dtype=torch.long)),
    ],
    ids=["one class", "regression", "other shape", "nothing counts", "no classes"],
)
def test_where_there_are_no_classes_nothing_is_read(output, targets):
    assert log_z.read(moment(output, targets)) == []


def feed(pairs):
    rule = OutputLogitDrift({"optimizer": "AdamW", "lr": 1e-3})
    rows = [Reading(5 * k, "log Z", z, {}, {"mean logit": mean}) for k, (z, mean) in enumerate(pairs, 1)]
    return [one for row in rows for one in rule.see(row)]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_of_all_logits_is_a_drift_to_either_side(sign):
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    pairs = []
    for k in range(40):
        shifted = logits + sign * 2.0 * k
        pairs.append((shifted.logsumexp(-1).mean().item(), shifted.mean().item()))
    warning, critical = feed(pairs)
    assert (warning.severity, critical.severity) == ("warning", "critical")
    assert warning.evidence["threshold"] == 2 < warning.evidence["drift"]
    assert warning.step < critical.step and ("above" if sign > 0 else "below") in warning.message
    # Without drift the mean is about 0 and log Z about log 10 + 1/2, so zero is left after so many steps.
    drift = 2.0 if sign > 0 else math.log(10) + 0.5 + 2
    assert warning.step == pytest.approx(5 * (drift / 2 + 1), abs=10)


def test_confidence_is_no_drift_and_neither_is_where_a_model_starts():
    assert feed([(2.3 + k, -0.3 * k) for k in range(60)]) == []
    assert feed([(2.3, 0.0), (2.3, 0.0), (20.0, 9.0), (2.3, 0.0)] * 10) == []
    assert feed([(-33.0, -36.0 + 0.02 * k) for k in range(60)]) == []


def test_a_z_loss_of_the_wrong_sign_is_named_and_its_twin_is_not():
    planted, twin = (planted_runs.digits_lion.outcome(100, fault) for fault in (True, False))
    assert NAME in {one.name for one in planted.findings}
    assert NAME not in {one.name for one in twin.findings}


def test_remedies_run_as_pasted_and_papers_are_there():
    found = feed([(2.3, 0.0)] * 3 + [(40.0, 30.0)] * 3)[0]
    model = tasks.MLP((8, 4), seed=0)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert all(papers.find(remedy.paper).key == remedy.paper for remedy in found.remedies)
    pulling, decay = (remedy.code for remedy in found.remedies)
    assert paste(decay, model, opt, batches(3))[0]["opt"].param_groups[0]["weight_decay"] == 0.1
    names, _ = paste(pulling, model, opt, batches(3))
    logits = (torch.randn(16, 4) + 30).requires_grad_()
    targets = torch.zeros(16, dtype=torch.long)
    # Cross entropy alone has a gradient that sums to zero over the classes; the z-loss pulls them down.
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    (pulled,) = torch.autograd.grad(names["loss_fn"](nn.Identity(), (logits, targets)), logits)
    assert plain.sum(-1).abs().max() < 1e-6 < 1e-3 < pulled.sum(-1).min()
