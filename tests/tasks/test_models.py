"""The small models against formulas for their size, their initial weights and their structure."""

import math

import pytest
import torch
from torch import nn

from thalweg.tasks import CNN, GPT, MLP, ResNet

SMALL_GPT = {"vocabulary": 11, "context": 8, "layers": 2, "heads": 2, "width": 16}
MODELS = {
    "mlp": lambda seed: MLP((8, 16, 4), norm="batch", seed=seed),
    "mlp-he": lambda seed: MLP((8, 16, 4), init="he", seed=seed),
    "cnn": lambda seed: CNN(width=4, seed=seed),
    "resnet": lambda seed: ResNet(width=4, stages=2, seed=seed),
    "gpt": lambda seed: GPT(**SMALL_GPT, seed=seed),
    "gpt-qk-norm": lambda seed: GPT(**SMALL_GPT, seed=seed, qk_norm=True),
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_seeded_weights_ignore_and_keep_the_global_random_state(build):
    torch.manual_seed(1)
    first = build(7)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(after, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = build(7), build(8)
    weights, repeated, changed = (list(model.parameters()) for model in (first, again, other))
    assert all(torch.equal(a, b) for a, b in zip(weights, repeated, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights, changed, strict=True))


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_without_a_seed_weights_come_from_the_global_random_state(build):
    torch.manual_seed(3)
    first, second = build(None), build(None)
    torch.manual_seed(3)
    again = build(None)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_mlp_is_the_written_out_composition():
    model = MLP((3, 5, 4, 2), activation="tanh", seed=0)
    weights = list(model.parameters())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    hidden = torch.tanh(torch.tanh(x @ weights[0].T + weights[1]) @ weights[2].T + weights[3])
    torch.testing.assert_close(model(x), hidden @ weights[4].T + weights[5])


def test_mlp_size_without_bias_and_with_norm():
    assert parameters(MLP((226, 200, 200, 113), bias=False)) == 226 * 200 + 200 * 200 + 200 * 113
    assert parameters(MLP((4, 6, 3), norm="layer")) == 4 * 6 + 6 + 2 * 6 + 6 * 3 + 3


def test_mlp_norm_stands_before_each_activation():
    model = MLP((4, 6, 6, 3), norm="layer", activation=nn.Mish)
    kinds = [type(layer) for layer in model]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.Mish] * 2 + [nn.Linear]


def test_mlp_initial_scales():
    he, xavier = (MLP((400, 600, 2), init=init, seed=0)[0] for init in ("he", "xavier"))
    assert abs(he.weight.std().item() / math.sqrt(2 / 400) - 1) < 0.01
    bound = math.sqrt(6 / 1000)
    assert 0.999 * bound < xavier.weight.abs().max().item() <= bound
    assert he.bias.abs().max() == 0 and xavier.bias.abs().max() == 0


def test_resnet_18_has_its_published_size_and_shape():
    assert parameters(ResNet(channels=3, width=64)) == 11_173_962
    model = ResNet(classes=7, width=4)
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, a, made: shapes.append(tuple(made.shape[1:])))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert shapes[::2] == shapes[1::2] == [(4, 8, 8), (8, 4, 4), (16, 2, 2), (32, 1, 1)]
    assert [isinstance(block.shortcut, nn.Identity) for block in model.blocks] == [True, True] + [
        False,
        True,
    ] * 3


@pytest.mark.parametrize("side", [4, 8, 28])
def test_cnn_takes_any_image_size(side):
    assert CNN(classes=7)(torch.zeros(2, 1, side, side)).shape == (2, 7)


def test_cnn_size():
    expected = 9 * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 2 * (32 + 64 + 64) + 64 * 10 + 10
    assert parameters(CNN()) == expected == 56_554


@pytest.mark.parametrize(("vocabulary", "context", "layers", "width"), [(97, 64, 2, 64), (115, 4, 1, 128)])
def test_gpt_size_formula(vocabulary, context, layers, width):
    common = vocabulary * width + context * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert parameters(GPT(vocabulary, context, layers, 4, width)) == common + vocabulary * width
    assert parameters(GPT(vocabulary, context, layers, 4, width, tied=True)) == common
    with_norms = GPT(vocabulary, context, layers, 4, width, tied=True, qk_norm=True)
    assert parameters(with_norms) == common + 2 * layers * width // 4


def test_gpt_is_causal_and_uses_the_past():
    model = GPT(**SMALL_GPT, seed=0)
    tokens = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (3, 8, 11)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    moved = (model(changed) - logits).abs().amax(dim=(0, 2))
    assert (moved[:5] == 0).all() and (moved[5:] > 0).all()


def test_gpt_attention_equals_explicit_masked_softmax():
    attention = GPT(**SMALL_GPT, seed=0).double().blocks[0].attention
    x = torch.randn(2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query, key, value = attention.query_key_value(x).split(16, dim=2)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        scores = query[..., part] @ key[..., part].mT / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    torch.testing.assert_close(attention(x), attention.project(torch.cat(heads, dim=2)))


def test_gpt_qk_norm_is_the_written_out_normalisation_of_each_head():
    attention = GPT(**SMALL_GPT, seed=0, qk_norm=True).double().blocks[0].attention
    with torch.no_grad():
        attention.query_norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query, key, value = attention.query_key_value(x).split(16, dim=2)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        q, k = ((t[..., part] - t[..., part].mean(-1, keepdim=True)) for t in (query, key))
        q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() for t in (q, k))
        scores = (q * attention.query_norm.weight) @ k.mT / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    torch.testing.assert_close(attention(x), attention.project(torch.cat(heads, dim=2)))


def test_gpt_weights_are_the_same_with_and_without_qk_norm():
    plain, normalised = (GPT(**SMALL_GPT, seed=3, qk_norm=qk_norm).state_dict() for qk_norm in (False, True))
    assert plain.keys() < normalised.keys()
    assert all(torch.equal(value, normalised[name]) for name, value in plain.items())


def test_gpt_last_readout_is_the_last_row_of_all():
    tokens = torch.arange(6).view(1, 6)
    last, every = (GPT(**SMALL_GPT, seed=0, readout=readout)(tokens) for readout in ("last", "all"))
    torch.testing.assert_close(last, every[:, -1])


def test_gpt_initial_scales():
    model = GPT(50, 64, layers=8, heads=4, width=128, seed=0)
    block = model.blocks[3]
    for weight, deviation in [
        (model.tokens.weight, 0.02),
        (block.feed_forward.expand.weight, 0.02),
        (block.feed_forward.contract.weight, 0.02 / 4),
        (block.attention.project.weight, 0.02 / 4),
    ]:
        assert abs(weight.std().item() / deviation - 1) < 0.05
    # Small weights: the first prediction is close to uniform.
    logits = model(torch.arange(50).view(1, 50))
    assert logits.std() < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP((3,)), r"sizes must have at least an input and an output width, got \(3,\)"),
        (lambda: MLP((3, 0)), "sizes must be an integer >= 1, got 0"),
        (lambda: MLP((3, 4), activation="rely"), r"activation must be one of .*did you mean relu"),
        (lambda: MLP((3, 4), norm="group"), "norm must be one of batch, layer; got 'group'"),
        (lambda: MLP((3, 4), init="zero"), "init must be one of he, torch, xavier; got 'zero'"),
        (lambda: MLP((3, 4), seed=1.5), "seed must be an integer >= 0, got 1.5"),
        (lambda: CNN(width=0), "width must be an integer >= 1, got 0"),
        (lambda: GPT(10, 4, heads=3, width=16), "heads must divide width 16, got 3"),
        (lambda: GPT(10, 4, readout="first"), "readout must be one of all, last; got 'first'"),
        (lambda: GPT(10, 4)(torch.zeros(1, 5, dtype=torch.int64)), "tokens must be at most 4 long"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
