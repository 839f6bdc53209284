from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import dormant_neurons


def score(activity: torch.Tensor) -> torch.Tensor:
    return activity / (activity.mean() + 1e-9)


def test_scores_equal_a_manual_forward_of_an_mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(64, 5, dtype=torch.float64)
    found = dormant_neurons(model, x, threshold=0.5)
    first = (x @ model[0].weight.T + model[0].bias).clamp_min(0)
    second = (first @ model[2].weight.T + model[2].bias).tanh()
    expected = {"1": score(first.mean(0)), "3": score(second.abs().mean(0))}
    for name, scores in expected.items():
        torch.testing.assert_close(found.scores[name], scores)
        assert found.fraction[name] == (scores <= 0.5).double().mean().item()
    dormant = sum(int((scores <= 0.5).sum()) for scores in expected.values())
    assert found.total == dormant / 24 and 0 < found.total < 1


def test_dead_units_count_at_threshold_zero_and_scores_have_mean_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        model[0].bias.fill_(0.5)
        model[0].weight[:3], model[0].bias[:3] = 0, -1
    found = dormant_neurons(model, torch.randn(50, 4), threshold=0)
    assert found.fraction == {"1": 0.3} and found.total == 0.3
    assert found.scores["1"][:3].tolist() == [0, 0, 0]
    assert found.scores["1"].mean().item() == pytest.approx(1)


def test_a_silent_layer_is_wholly_dormant():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -1.0)
    assert dormant_neurons(model, torch.randn(8, 2)).total == 1


def test_a_convolutional_unit_is_a_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(96, 2)).double()
    x = torch.randn(9, 1, 6, 6, dtype=torch.float64)
    expected = functional.leaky_relu(functional.conv2d(x, model[0].weight, model[0].bias), 0.1)
    found = dormant_neurons(model, x)
    torch.testing.assert_close(found.scores["1"], score(expected.abs().mean((0, 2, 3))))


def test_a_sequence_unit_is_the_last_dimension_unless_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU())
    x = torch.randn(6, 3, 4)
    hidden = functional.gelu(model[0](x)).detach().abs()
    torch.testing.assert_close(dormant_neurons(model, x).scores["1"], score(hidden.mean((0, 1))))
    by_time = dormant_neurons(model, x, unit_dim=1)
    torch.testing.assert_close(by_time.scores["1"], score(hidden.mean((0, 2))))


def test_bfloat16_activations_are_averaged_in_float32():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.ones(4096, 2, dtype=torch.bfloat16)
    x[:, 1] = 3
    assert dormant_neurons(model, x).scores["1"].tolist() == pytest.approx([0.5, 1.5])


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x, shift=0.0):
        return self.out(functional.relu(self.hidden(x)) + shift)


class SharedActivation(nn.Module):
    """One activation module for two layers, applied in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(3, 4), nn.Linear(4, 5), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.second(self.act(self.first(x)))).mul_(0)


def test_named_layers_are_scored_where_activations_are_function_calls():
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(20, 3)
    found = dormant_neurons(model, x, layers=["hidden"])
    torch.testing.assert_close(found.scores["hidden"], score(model.hidden(x).detach().abs().mean(0)))
    by_tuple = dormant_neurons(model, (x,), layers=["hidden"])
    by_name = dormant_neurons(model, {"x": x, "shift": 1.0}, layers=["hidden"])
    assert torch.equal(by_tuple.scores["hidden"], by_name.scores["hidden"])


def test_a_shared_activation_is_one_layer_a_run_and_later_in_place_writes_do_not_matter():
    torch.manual_seed(0)
    model, x = SharedActivation(), torch.randn(20, 3)
    found = dormant_neurons(model, x)
    first = model.first(x).detach().relu()
    second = model.second(first).detach().relu()
    torch.testing.assert_close(found.scores["act"], score(first.mean(0)))
    torch.testing.assert_close(found.scores["act[1]"], score(second.mean(0)))


def test_model_is_left_as_it_was_also_after_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1))
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = torch.get_rng_state()
    dormant_neurons(model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="finite activations"):
        dormant_neurons(model, torch.full((8, 3), torch.nan))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle, self.cell = nn.ReLU(), nn.ReLU(), nn.LSTM(3, 2)

    def forward(self, x):
        return self.cell(self.used(x))


@pytest.mark.parametrize(
    ("model", "batch", "arguments", "message"),
    [
        (nn.Linear(3, 2), torch.ones(2, 3), {}, "no activation modules .* name .* with layers=.* inputs_of="),
        (Functional(), torch.ones(2, 3), {"layers": ["hiden"]}, r"got 'hiden' \(did you mean hidden\?\)"),
        (
            Idle(),
            torch.ones(2, 3),
            {"layers": ["used", "idle"]},
            "run when the model is called, got idle",
        ),
        (Idle(), torch.ones(2, 3), {"layers": []}, "must run when the model is called, got none"),
        (Idle(), torch.ones(2, 3), {"layers": ["cell"]}, "'cell' must return one tensor, got tuple"),
        (nn.ReLU(), torch.ones(3), {}, r"must return \(batch, units, ...\), got shape \(3,\)"),
        (nn.ReLU(), torch.ones(3, 2), {"unit_dim": 2}, r"unit_dim must be a dimension of \(3, 2\)"),
        (nn.ReLU(), torch.ones(3, 2), {"threshold": -0.1}, "threshold must be in"),
    ],
)
def test_dormant_neurons_refuses(model, batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        dormant_neurons(model, batch, **arguments)


def test_dead_units_are_those_that_never_answer_and_dormant_ones_hardly():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.tensor([[1.0, -1.0, 0.01, 1.0], [2.0, -3.0, 0.01, 1.0]])
    found = dormant_neurons(model, x)
    assert found.fraction == {"1": 0.5} and found.total == 0.5
    assert found.dead == {"1": 0.25} and found.total_dead == 0.25


def test_feed_forward_units_behind_a_function_are_what_the_next_layer_reads():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    x = torch.randn(5, 3, 8)
    layer.eval()
    heard = []
    layer.linear1.register_forward_hook(lambda _m, _i, out: heard.append(out.detach().relu()))
    with torch.no_grad():
        layer(x)
    found = dormant_neurons(layer, x, inputs_of=["linear2"])
    torch.testing.assert_close(found.scores["linear2"], score(heard[0].mean((0, 1))))
    assert len(heard) == 1  # nothing stays of what a hook heard of the probe


class Gated(nn.Module):
    """The feed-forward layer of Llama and its like: a unit is a product."""

    def __init__(self, activation):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.activation = activation

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


def test_gated_units_are_products_and_activations_of_transformers_count_as_such():
    activations = pytest.importorskip("transformers.activations")
    torch.manual_seed(0)
    model, x = Gated(activations.NewGELUActivation()), torch.randn(5, 3, 4)
    gate = functional.gelu(model.gate(x).detach(), approximate="tanh")
    torch.testing.assert_close(dormant_neurons(model, x).scores["activation"], score(gate.abs().mean((0, 1))))
    unit = gate * model.up(x).detach()
    by_name = dormant_neurons(model, x, inputs_of=["down"])
    torch.testing.assert_close(by_name.scores["down"], score(unit.abs().mean((0, 1))))


def test_a_module_is_heard_at_one_end_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ValueError, match="inputs_of must name other modules than layers, got '1' in both"):
        dormant_neurons(model, torch.ones(2, 2), layers=["1"], inputs_of=["1"])
