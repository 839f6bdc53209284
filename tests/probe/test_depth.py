"""The error on its way back equals what autograd and the chain rule say, and nothing of the model moves."""

import copy

import pytest
import torch
from torch import nn

from thalweg import tasks
from thalweg.probe import backward_signal


def error_for(output):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(0))


def test_a_chain_equals_the_product_of_its_jacobians():
    model, x = tasks.MLP((6, 5, 4, 3), activation="tanh", seed=0), torch.randn(7, 6)
    states, below = [], x
    for layer in model:
        below = layer(below)
        states.append(below.detach().double())
    error = error_for(states[-1]).double()
    expected = {"4": error.norm()}
    for index in (2, 0):
        error = (error @ model[index + 2].weight.detach().double()) * (1 - states[index + 1] ** 2)
        expected[str(index)] = error.norm()
    found = backward_signal(model, x)
    assert list(found.norms) == ["0", "2", "4"]
    for name, value in expected.items():
        assert found.norms[name] == pytest.approx(value.item(), rel=1e-5)
    assert found.ratio == pytest.approx((expected["0"] / expected["4"]).item(), rel=1e-5)


def test_a_recurrent_layer_is_seen_at_every_step():
    rnn, tokens = tasks.RNN(6, 8, 4, radius=1.5, seed=0), torch.randint(0, 6, (5, 12))
    found = backward_signal(rnn, tokens)
    states = [state.detach() for state in rnn.states(tokens)]
    error = error_for(rnn(tokens)) @ rnn.head.weight.detach()
    expected = []
    for state in reversed(states):
        error = error * (1 - state**2)
        expected.insert(0, error.norm().item())
        error = error @ rnn.recurrent.weight.detach()
    steps = [found.norms[f"recurrent[{step}]"] for step in range(12)]
    assert steps == pytest.approx(expected, rel=1e-4)
    assert list(found.norms)[-1] == "head"


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_fused_recurrent_layers_are_seen_at_their_input(kind, batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = kind(3, 8, batch_first=batch_first)

        def forward(self, x):
            return self.cell(x)[0].select(1 if batch_first else 0, -1)

    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 9, 3)
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, error_for(output))
    expected = gradient.norm(dim=(0, 2) if batch_first else (1, 2)).tolist()
    norms = backward_signal(model, x).norms
    assert list(norms) == [f"cell[{step}]" for step in range(len(expected))]
    assert list(norms.values()) == pytest.approx(expected, rel=1e-4)
    assert not x.requires_grad


def test_linear_layers_with_a_transposed_weight_are_seen():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2)
    model, tokens = transformers.GPT2LMHeadModel(config), torch.randint(0, 11, (3, 6))
    found = backward_signal(model, tokens)
    for name, old in list(model.named_modules()):
        if type(old).__name__ == "Conv1D":
            new = nn.Linear(*old.weight.shape)
            new.weight.data, new.bias.data = old.weight.data.T.contiguous(), old.bias.data
            model.set_submodule(name, new)
    expected = backward_signal(model, tokens)
    assert list(found.norms) == list(expected.norms) and len(found.norms) == 9
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)


def test_a_layer_that_writes_over_its_input_changes_nothing():
    torch.manual_seed(0)
    apart = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    inplace = nn.Sequential(apart[0], nn.ReLU(inplace=True), apart[2])
    x = torch.randn(5, 4)
    assert backward_signal(inplace, x).norms == backward_signal(apart, x).norms


def test_nothing_of_the_model_moves_and_batch_statistics_are_those_of_training():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    model[1].eval()
    x = 5 + 3 * torch.randn(8, 1, 8, 8)
    model(x).sum().backward()
    before, random = copy.deepcopy(model), torch.get_rng_state()
    gradients = [p.grad.clone() for p in model.parameters()]
    found = backward_signal(model, x)
    assert torch.equal(random, torch.get_rng_state())
    for old, new in zip(before.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert model[1].track_running_stats and not any(m._forward_hooks for m in model.modules())
    norm = before[1].train()
    a = before[0](x)
    output = before[5](before[4](before[2](norm(a))))
    (gradient,) = torch.autograd.grad(output, a, error_for(output))
    assert found.norms["0"] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_frozen_layers_that_lead_nowhere_are_left_out():
    model = tasks.MLP((6, 5, 4, 3), seed=0)
    for p in [*model[0].parameters(), *model[2].parameters()]:
        p.requires_grad_(False)
    assert list(backward_signal(model, torch.randn(7, 6)).norms) == ["4"]


def test_what_cannot_be_seen_is_an_error():
    with pytest.raises(ValueError, match="linear, convolutional or recurrent layer"):
        backward_signal(nn.Sequential(nn.ReLU()), torch.randn(2, 3))
    with pytest.raises(ValueError, match="floating-point tensor, got str"):
        backward_signal(Silent(), torch.randn(2, 3))


class Silent(nn.Module):
    def forward(self, x):
        return "nothing"


def test_batch_normalisation_over_processes_is_not_waited_for():
    """In training mode it would gather statistics from processes that do not call the probe."""
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(plain)

    def waits(module, inputs):
        assert not module.training

    synced[1].register_forward_pre_hook(waits)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    running = synced[1].running_mean
    found = backward_signal(synced, x)
    assert synced[1].training and synced[1].running_mean is running
    again = nn.Sequential(plain[0], nn.BatchNorm1d(4), nn.ReLU(), plain[3])
    assert found.norms == pytest.approx(backward_signal(again, x).norms)
