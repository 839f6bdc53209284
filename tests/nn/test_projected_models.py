"""normalize_and_project on models that no symbol passes through: what it makes of them, written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import tasks
from thalweg.nn import NormalizedLayer, normalize_and_project, project_after_step

TOKENS = torch.arange(24).view(3, 8) % 7
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def gpt(**how) -> tasks.GPT:
    return tasks.GPT(7, 8, layers=2, heads=2, width=8, seed=0, **how).double()


def rnn() -> tasks.RNN:
    return tasks.RNN(7, 6, 3, seed=0).double()


def llama() -> tasks.Llama:
    return tasks.Llama(7, width=8, feed_forward=12, heads=2, layers=2, seed=0).double()


MODELS = {
    "gpt": (gpt, TOKENS),
    "gpt, last": (lambda: gpt(readout="last"), TOKENS),
    "gpt, queries and keys normalised": (lambda: gpt(qk_norm=True), TOKENS),
    "gpt, tied": (lambda: gpt(tied=True), TOKENS),
    "rnn": (rnn, TOKENS),
    "llama": (llama, TOKENS),
    "mlp": (lambda: tasks.MLP((64, 9, 9, 10), seed=0).double(), IMAGES.flatten(1)),
    "cnn": (lambda: tasks.CNN(width=4, seed=0).double(), IMAGES),
    "resnet": (lambda: tasks.ResNet(width=4, seed=0).double(), IMAGES),
}


def layers(model: nn.Module) -> dict[str, NormalizedLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, NormalizedLayer)}


def plain(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The layer without its bias, and a fresh layer normalisation."""
    out = x @ layer.weight.T
    centred = out - out.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def transcribed_gpt(model: tasks.GPT, tokens: torch.Tensor) -> torch.Tensor:
    x = model.tokens.weight[tokens] + model.positions.weight[: tokens.shape[1]]
    for block in model.blocks:
        part = block.attention
        query, key, value = (
            one.unflatten(-1, (part.heads, -1)).transpose(1, 2)
            for one in plain(part.query_key_value, block.attention_norm(x)).chunk(3, -1)
        )
        scores = query @ key.mT / query.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + plain(part.project, mixed)
        inner = block.feed_forward
        x = x + plain(inner.contract, F.gelu(plain(inner.expand, block.feed_forward_norm(x))))
    return model.norm(x) @ model.head.weight.T


def transcribed_rnn(model: tasks.RNN, tokens: torch.Tensor) -> torch.Tensor:
    state = torch.zeros(len(tokens), 6).double()
    for step in tokens.T:
        state = torch.tanh(model.inputs.weight[step] + plain(model.recurrent, state))
    return model.head(state)


@pytest.mark.parametrize(("make", "written"), [(gpt, transcribed_gpt), (rnn, transcribed_rnn)])
def test_the_new_model_is_the_old_one_with_normalisations_written_in(make, written):
    model = make()
    before = copy.deepcopy(model.state_dict())
    made = normalize_and_project(model, inputs=TOKENS)
    torch.testing.assert_close(made(TOKENS), written(model, TOKENS))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_but_the_readout_can_be_scaled_without_changing_the_function(name):
    make, x = MODELS[name]
    made = normalize_and_project(make(), inputs=x).eval()
    for module in made.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-14
        if hasattr(module, "running_mean"):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    weighted = [m for m in made.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers(made)) == len(weighted) - 1
    before = made(x)
    with torch.no_grad():
        for place, layer in enumerate(layers(made).values()):
            layer.layer.weight.mul_(2.0 + place)
    torch.testing.assert_close(made(x), before, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_a_run_finds_what_the_symbolic_trace_finds(name):
    make, x = MODELS[name]
    run, traced = normalize_and_project(make(), inputs=x), normalize_and_project(make())
    assert str(run) == str(traced)
    for a, b in zip(run.state_dict().items(), traced.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@pytest.mark.parametrize("tied", [False, True])
def test_gpt_trains_with_weights_of_one_length_with_a_readout_that_is_projected_too_or_not(tied):
    made = normalize_and_project(gpt(tied=tied), inputs=(TOKENS,), readout=tied)
    assert len(layers(made)) == 8 + tied
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    project_after_step(made, optimizer)
    losses = []
    for _ in range(36):
        optimizer.zero_grad()
        loss = F.cross_entropy(made(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # A readout of its first length, which is short, keeps the logits small.
    # The readout's first length is short, and with that length logits stay small.
    assert losses[-1] < losses[0] * (0.95 if tied else 0.2)
    for layer in layers(made).values():
        assert layer.layer.weight.norm().item() == pytest.approx(layer.radius.item(), rel=1e-6)
    if tied:
        assert made.head.layer.weight is made.tokens.weight


class Patches(nn.Module):
    """A class token and positions before a layer, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 4, dtype=torch.float64))
        self.places = nn.Parameter(torch.ones(1, 9, 4, dtype=torch.float64))
        self.mix, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.mix(x)[:, 0])


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 8, 4).double()])
def test_class_tokens_and_embeddings_of_positions_stay_as_they_are(inputs):
    model = Patches()
    made = normalize_and_project(model, inputs=inputs)
    assert list(layers(made)) == ["mix"]
    assert torch.equal(made.token, model.token) and torch.equal(made.places, model.places)


class Own(nn.Module):
    """A matrix of its own beside a layer."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.eye(4))
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x @ self.mix))


class Past(nn.Module):
    """Reads the weight of a layer without running it."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, scale=1.0):
        return self.head(F.linear(x, scale * self.first.weight))


def test_what_is_not_understood_is_refused_by_name():
    x = torch.randn(3, 4)
    gru = nn.ModuleDict({"first": nn.Linear(4, 4), "cell": nn.GRU(4, 4)})
    with pytest.raises(ValueError, match=r"module 'cell' \(GRU\) is not understood: .* name in layers"):
        normalize_and_project(gru, inputs=x)
    for given in (None, x):
        with pytest.raises(ValueError, match=r"module '' \(Own\) is not understood"):
            normalize_and_project(Own(), inputs=given)
    with pytest.raises(ValueError, match="module 'first' must be run, got its weight read by"):
        normalize_and_project(Past(), inputs={"x": x, "scale": 2.0})
    with pytest.raises(
        ValueError, match="inputs must be what GPT runs on, got ValueError: tokens must be at"
    ):
        normalize_and_project(gpt(), inputs=TOKENS.repeat(1, 2))
    with pytest.raises(ValueError, match=r"torch\.fx can trace, or inputs or layers be given"):
        normalize_and_project(gpt())
    assert list(layers(normalize_and_project(Own(), layers=["layer"]))) == ["layer"]


def test_a_run_calls_nobody_and_leaves_training_mode_and_random_state():
    model, heard = gpt().train(), []
    model.blocks[0].register_forward_hook(lambda *_: heard.append(1))
    state = torch.get_rng_state()
    made = normalize_and_project(model, inputs=TOKENS)
    assert not heard and model.training and made.training and torch.equal(torch.get_rng_state(), state)
    made(TOKENS)
    assert heard  # the new model has the hook
