"""Attention logits: the reading is the product of queries and keys, and growth far past 100 is named."""

from __future__ import annotations

import pytest
import torch
from benchmarks.findings.planted import attention_logits as planted_runs
from torch import nn
from torch.nn import functional as F

import thalweg
from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import attention_logits
from thalweg.watch import Reading
from thalweg.watch.moment import Moment, few
from thalweg.watch.rules.attention_logits import AttentionLogitGrowth
from thalweg.watch.sensors.attention import attention_logit

NAME = "attention-logit growth"


def moment(model, inputs, memory):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Moment(1, dict(model.named_parameters()), opt, model, inputs=((inputs,), {}), memory=memory)


def test_the_reading_is_the_largest_product_that_causality_allows_on_two_sequences():
    model = tasks.GPT(11, 6, layers=1, heads=2, width=8, seed=0).double()
    with torch.no_grad():
        model.blocks[0].attention.query_key_value.weight *= 50
    tokens = torch.randint(0, 11, (5, 6), generator=torch.Generator().manual_seed(0))
    (raw,) = attention_logit.read(moment(model, tokens, {}))
    block = model.blocks[0]
    x = block.attention_norm(model.tokens(tokens[:2]) + model.positions(torch.arange(6)))
    query, key, _ = block.attention.query_key_value(x).chunk(3, -1)
    largest = max(
        abs(query[b, i, h : h + 4] @ key[b, j, h : h + 4]).item() / 2
        for b in range(2)
        for h in (0, 4)
        for i in range(6)
        for j in range(i + 1)
    )
    assert raw.value == pytest.approx(largest, rel=1e-5)
    assert raw.layers == ("blocks.0.attention",) and raw.values.tolist() == pytest.approx([largest], rel=1e-5)


def test_a_mask_over_positions_is_no_batch_and_stays_whole_beside_two_sequences():
    seen = []

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)

        def forward(self, x, mask):
            seen.append(len(x))
            return self.layer(x, src_mask=mask)

    torch.manual_seed(0)
    model, x = Masked(), torch.randn(6, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    at = moment(model, x, {})
    at.inputs = (x, mask), {}
    (raw,) = attention_logit.read(at)
    assert seen == [2]
    assert raw.value == attention_logits(model, (x[:2], mask)).largest


def test_a_part_of_a_batch_has_the_first_of_all_that_has_one_an_example():
    batch = {
        "heat": torch.tensor(2.0),
        "places": torch.zeros(1, 5),
        "x": torch.ones(6, 5),
        "y": torch.ones(6),
    }
    shapes = {name: tuple(t.shape) for name, t in few(batch, 2).items()}
    assert shapes == {"heat": (), "places": (1, 5), "x": (2, 5), "y": (2,)}


def test_a_model_without_attention_is_asked_once_and_never_run_again(monkeypatch):
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x):
            # Of the class: what a module or a hook keeps is put back.
            Counted.calls += 1
            return super().forward(x)

    monkeypatch.setattr("thalweg.watch.senses.all_sensors", lambda: [attention_logit])
    model, steps = nn.Sequential(nn.Flatten(), Counted(8, 4)), 40
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with thalweg.watch(model, opt, budget=1e9, store=None) as run:
        for _ in range(steps):
            model(torch.randn(3, 8)).square().mean().backward()
            opt.step()
            opt.zero_grad()
    assert Counted.calls == steps + 1 and run.left_out() == {}


def feed(values, step=10):
    rule = AttentionLogitGrowth({})
    rows = [Reading(step * k, "attention logit", v, {"a": v / 2, "b": v}) for k, v in enumerate(values, 1)]
    return [one for row in rows for one in rule.see(row)]


def test_growth_is_a_warning_from_100_and_critical_from_ten_thousand():
    found = feed([0.1, 2, 8, 20, 45, 90, 150, 300, 900, 5e3, 2e4, 3e4, 4e4])
    assert [(one.severity, one.step) for one in found] == [("warning", 70), ("critical", 120)]
    assert found[0].evidence == {"attention logit": 300, "at first": 0.1, "threshold": 100}
    assert found[0].layers == ("b", "a") and found[1].evidence["threshold"] == 1e4


@pytest.mark.parametrize(
    "values",
    [
        [1, 5, 20, 45, 60, 80, 95, 99] * 5,
        [0.1, 2, 8, 20, 45, 150, 60, 150, 60],
        [150, 160, 170, 200, 250, 300, 400, 500, 550],
        [1, 2, 4, float("nan"), float("inf"), float("inf")],
    ],
    ids=["below", "single readings", "large from the start", "not finite"],
)
def test_other_courses_are_none(values):
    assert feed(values) == []


def test_a_rate_that_the_transformer_does_not_bear_is_named_and_its_twin_is_not():
    planted, twin = (planted_runs.digits_lion.outcome(100, fault) for fault in (True, False))
    (found, *_) = [one for one in planted.findings if one.name == NAME]
    assert found.step > planted_runs.JUMP and found.layers[0].startswith("body.layers")
    assert NAME not in {one.name for one in twin.findings}


class Classifier(nn.Module):
    """Two tokens of width four, whose queries are ten thousand times too large."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.last = (nn.Linear(4, 4) for _ in range(4))
        with torch.no_grad():
            self.query.weight *= 1e4

    def forward(self, x):
        x = x.unflatten(1, (1, 2, 4))
        mixed = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.last(mixed).mean((1, 2))


def test_remedies_run_as_pasted_and_papers_are_there(monkeypatch):
    (found,) = feed([1, 1, 1, 300, 300])
    assert all(papers.find(remedy.paper).key == remedy.paper for remedy in found.remedies)
    normalised, lower = found.remedies
    model = Classifier()
    assert attention_logits(model, torch.randn(16, 8)).largest > 1e3
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    paste(lower.code, model, opt, batches(4))
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05)
    monkeypatch.setattr(F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
    try:
        names, _ = paste(normalised.code, model, opt, batches(4))
        # However large queries are, a normalised pair of width d has no product above d, by its root 2.
        assert 0 < attention_logits(names["model"], torch.randn(16, 8)).largest <= 2 + 1e-3
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        tokens = torch.randn(4, 6, 8)
        with torch.no_grad():
            layer.self_attn.in_proj_weight[:8] *= 1e4
            trained, evaluated = layer(tokens), layer.eval()(tokens)
            layer.self_attn.in_proj_weight[:8] *= 10
            louder = layer(tokens)
        assert torch.equal(trained, evaluated) and louder.allclose(evaluated, atol=1e-4)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
