from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.nn import EarlyDropout, LateDropout, RateDropout, convert


def rates(schedule, steps):
    seen = []
    for _ in range(steps):
        seen.append(schedule.rate)
        schedule.step()
    return seen


def test_schedules_are_the_arrays_of_the_paper():
    def model():
        return nn.Dropout(0.9)

    linear = [*np.linspace(0.1, 0, 6), 0, 0, 0]
    assert rates(EarlyDropout(model(), 0.1, steps=6), 9) == pytest.approx(linear, abs=1e-15)
    assert rates(EarlyDropout(model(), 0.1, steps=6), 9)[5] == 0  # exactly
    assert rates(EarlyDropout(model(), 0.1, steps=1), 3) == [0.1, 0, 0]
    assert rates(EarlyDropout(model(), 0.2, steps=2, shape="constant"), 4) == [0.2, 0.2, 0, 0]
    assert rates(LateDropout(model(), 0.4, steps=2), 4) == [0, 0, 0.4, 0.4]
    assert rates(EarlyDropout(model(), steps=0), 2) == [0, 0] and rates(LateDropout(model(), steps=0), 1) == [
        0.1
    ]


def test_every_dropout_of_a_model_is_written_before_the_first_update_and_after_each():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5)
    model = nn.ModuleDict(
        {
            "block": layer,
            "maps": nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout2d(0.3)),
            "deep": nn.LSTM(4, 4, num_layers=2, dropout=0.3),
            "flat": nn.GRU(4, 4),
            "tensor": RateDropout(0.7),
        }
    )
    schedule = LateDropout(model, 0.25, steps=1)
    for expected in (0.0, 0.25):
        read = [layer.dropout.p, layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout]
        read += [model["maps"][1].p, model["deep"].dropout, model["tensor"].p]
        assert read == [expected] * 7
        schedule.step()
    assert model["flat"].dropout == 0
    model["block"].train()
    x = torch.ones(3, 2, 8)
    assert not torch.equal(layer(x), layer(x))  # the attention's own rate is read at each call
    EarlyDropout(model, steps=0)
    assert torch.equal(layer(x), layer(x))


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob


class StochasticDepth(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p


def test_stochastic_depth_keeps_its_rule_of_depth():
    blocks = [nn.Identity(), DropPath(0.1), DropPath(0.1), StochasticDepth(0.2), nn.Dropout(0.5)]
    model = nn.Sequential(*blocks)
    schedule = EarlyDropout(model, 0.5, steps=3, kind="stochastic depth")
    for rate in (0.5, 0.25, 0.0, 0.0):
        assert [model[1].drop_prob, model[2].drop_prob, model[3].p] == pytest.approx(
            [rate / 2, rate / 2, rate]
        )
        schedule.step()
    assert model[4].p == 0.5


def test_a_schedule_resumes():
    first, second = nn.Dropout(), nn.Dropout()
    schedule = EarlyDropout(first, 0.3, steps=4)
    schedule.step()
    resumed = EarlyDropout(second, 0.3, steps=4)
    resumed.load_state_dict(schedule.state_dict())
    assert second.p == first.p == pytest.approx(0.2)
    assert rates(resumed, 4) == rates(schedule, 4)


def test_rate_dropout_drops_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(400, 500, dtype=dtype, requires_grad=True)
        module = RateDropout(0.05)
        out = module(x)
        out.sum().backward()
        # 200 000 draws: one standard deviation is 0.0005.
        assert (out == 0).double().mean().item() == pytest.approx(0.05, abs=0.002)
        assert out.max().item() == pytest.approx(1 / 0.95, rel=0.01) and out.dtype is dtype
        assert torch.equal(x.grad, out)
    assert torch.equal(module.eval()(x), x)
    module.train().p = 0
    assert torch.equal(module(x), x)


def test_a_compiled_model_follows_the_schedule_without_compiling_again():
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), {nn.Dropout: RateDropout.of})
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(64, 4)
    schedule = EarlyDropout(model, 0.9, steps=3)
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for dropped in (0.9, 0.45, 0.0, 0.0):
            share = (compiled(x) == 0).double().mean().item()
            assert share == pytest.approx(dropped, abs=0.15)
            schedule.step()
    exported = torch.export.export(model.eval(), (x,)).module()
    assert torch.equal(exported(x), model(x))


def test_scheduled_dropout_refuses_and_writes_nothing():
    model = nn.Sequential(nn.Dropout(0.3))
    for options, message in (
        ({"rate": 1.0, "steps": 1}, r"rate must be in \[0, 1\), got 1\.0"),
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        ({"steps": 1, "shape": "cosine"}, "shape must be one of constant, linear; got 'cosine'"),
        ({"steps": 1, "kind": "depth"}, "kind must be one of dropout, stochastic depth; got 'depth'"),
        ({"steps": 1, "kind": "stochastic depth"}, "model must have modules for stochastic depth, got Seq"),
    ):
        with pytest.raises(ValueError, match=message):
            EarlyDropout(model, **options)
        assert model[0].p == 0.3
    with pytest.raises(ValueError, match="done must be an integer >= 0, got None"):
        EarlyDropout(model, 0.1, steps=3).load_state_dict({})
    with pytest.raises(ValueError, match="model must have modules for dropout, got Linear without"):
        LateDropout(nn.Linear(1, 1), steps=1)
    with pytest.raises(ValueError, match=r"module '0' \(Dropout2d\): module must be an nn\.Dropout"):
        convert(nn.Sequential(nn.Dropout2d()), {nn.Dropout2d: RateDropout.of})
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1"):
        RateDropout(1)
