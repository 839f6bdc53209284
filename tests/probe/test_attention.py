from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.probe import attention_logits
from thalweg.tasks import GPT, Llama
from thalweg.tasks.llama import rotated


def largest(query: torch.Tensor, key: torch.Tensor, allowed) -> float:
    """Over examples and pairs one by one; ``query`` and ``key`` (b, t, d), ``allowed(example, i, j)``."""
    best = 0.0
    for example, (qs, ks) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        for i, q in enumerate(qs):
            for j, k in enumerate(ks):
                if allowed(example, i, j):
                    product = sum(a * b for a, b in zip(q, k, strict=True))
                    best = max(best, abs(product) / math.sqrt(len(q)))
    return best


def causal(example: int, i: int, j: int) -> bool:
    return j <= i


def heard(model: nn.Module, name: str, batch) -> torch.Tensor:
    """What the module called ``name`` was given."""
    caught = []
    handle = dict(model.named_modules())[name].register_forward_hook(
        lambda m, i, o: caught.append(i[0].detach())
    )
    model(batch)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_gpt_logits_are_the_largest_of_each_head_over_the_past(qk_norm):
    model = GPT(11, 8, layers=2, heads=2, width=16, seed=0, qk_norm=qk_norm)
    tokens = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.query_key_value.weight *= 30
    found = attention_logits(model, tokens)
    assert list(found.per_head) == ["blocks.0.attention", "blocks.1.attention"]
    for name, heads in found.per_head.items():
        attention = dict(model.named_modules())[name]
        split = attention.query_key_value(heard(model, name, tokens)).unflatten(2, (3, 2, 8))
        query, key = attention.query_norm(split[:, :, 0]), attention.key_norm(split[:, :, 1])
        expected = [largest(query[:, :, head], key[:, :, head], causal) for head in range(2)]
        assert heads.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.largest == max(heads.max().item() for heads in found.per_head.values())


def test_llama_logits_are_those_of_turned_queries_and_keys():
    model = Llama(13, width=16, feed_forward=22, heads=2, layers=1, seed=0)
    tokens = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    attention, x = model.blocks[0].attention, heard(model, "blocks.0.attention", tokens)
    turned = [
        rotated(one(x).unflatten(2, (2, 8)).transpose(1, 2)) for one in (attention.query, attention.key)
    ]
    expected = [largest(turned[0][:, head], turned[1][:, head], causal) for head in range(2)]
    found = attention_logits(model, tokens).per_head["blocks.0.attention"]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


class Direct(nn.Module):
    """Calls the function with what it was made with."""

    def __init__(self, **keywords):
        super().__init__()
        self.keywords = keywords

    def forward(self, query, key):
        return F.scaled_dot_product_attention(query, key, key, **self.keywords)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


BOOLEAN = drawn(4, 5) > 0
ADDED = torch.where(BOOLEAN, drawn(4, 5), -torch.inf)
LEAST = torch.where(BOOLEAN, 0.0, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    ("keywords", "allowed"),
    [
        ({}, lambda e, i, j: True),
        ({"is_causal": True}, causal),
        ({"attn_mask": BOOLEAN}, lambda e, i, j: bool(BOOLEAN[i, j])),
        ({"attn_mask": ADDED}, lambda e, i, j: bool(BOOLEAN[i, j])),
        ({"attn_mask": LEAST.expand(2, 1, 4, 5)}, lambda e, i, j: bool(BOOLEAN[i, j])),
        ({"attn_mask": (torch.arange(5) < 3).expand(2, 1, 1, 5)}, lambda e, i, j: j < 3),
    ],
)
def test_pairs_that_are_masked_do_not_count(keywords, allowed):
    query, key = drawn(2, 3, 4, 6), drawn(2, 3, 5, 6)
    found = attention_logits(Direct(**keywords), (query, key))
    expected = [largest(query[:, head], key[:, head], allowed) for head in range(3)]
    assert found.per_head["model"].tolist() == pytest.approx(expected, rel=1e-5)


def test_scale_grouped_queries_and_calls_without_heads():
    query, key = drawn(2, 4, 5, 6), drawn(2, 2, 5, 6)
    found = attention_logits(Direct(scale=10.0, enable_gqa=True), (query, key)).per_head["model"]
    every = [largest(query[:, h], key[:, h // 2], lambda e, i, j: True) * math.sqrt(6) * 10 for h in range(4)]
    assert found.tolist() == pytest.approx(every, rel=1e-5)
    single = attention_logits(Direct(), (query[:, 0], key[:, 0])).per_head["model"]
    assert single.tolist() == pytest.approx([largest(query[:, 0], key[:, 0], lambda e, i, j: True)], rel=1e-5)


def test_nothing_that_may_attend_is_zero_and_what_is_not_finite_is_shown():
    query = drawn(1, 1, 3, 4)
    blind = Direct(attn_mask=torch.zeros(3, 3, dtype=torch.bool))
    assert attention_logits(blind, (query, query)).largest == 0
    assert math.isnan(attention_logits(Direct(), (query * torch.nan, query)).largest)
    huge = torch.full((1, 1, 1, 4), 1e30)
    assert attention_logits(Direct(), (huge, huge)).largest == math.inf


def test_half_precision_logits_are_taken_in_float32():
    query = torch.full((1, 1, 1, 64), 200.0, dtype=torch.float16)
    assert attention_logits(Direct(), (query, query)).largest == pytest.approx(200 * 200 * 8)


KINDS = {
    "weights": ({"batch_first": True}, {}),
    "positions first": ({}, {"need_weights": False}),
    "other widths": ({"batch_first": True, "kdim": 5, "vdim": 7}, {}),
    "no bias": ({"batch_first": True, "bias": False}, {"need_weights": False}),
    "learned key": ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, {}),
    "mask": ({"batch_first": True}, {"attn_mask": drawn(4, 6) > 0.5}),
    "padding": (
        {"batch_first": True},
        {"key_padding_mask": torch.tensor([[False] * 5 + [True], [False] * 6])},
    ),
    "mask of heads": ({"batch_first": True}, {"attn_mask": torch.arange(6).expand(4, 4, 6) == 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_multihead_attention_is_its_projections(kind):
    made, given = KINDS[kind]
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **made).eval()
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
    query, key, value = drawn(2, 4, 8), drawn(2, 6, made.get("kdim", 8)), drawn(2, 6, made.get("vdim", 8))
    whole = module.in_proj_weight
    weights = (module.q_proj_weight, module.k_proj_weight) if whole is None else (whole[:8], whole[8:16])
    biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.split(8)
    q, k = F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1])
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(2, 1, 8)], dim=1)

    def allowed(example: int, i: int, j: int) -> bool:
        if j >= 6:
            return True
        mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
        if mask is not None and mask.dim() == 3:
            mask = mask[0]
        return not (mask is not None and mask[i, j]) and not (padding is not None and padding[example, j])

    expected = [largest(q[..., part], k[..., part], allowed) for part in (slice(0, 4), slice(4, 8))]
    batch = {"query": query, "key": key, "value": value, **given}
    if not module.batch_first:
        batch.update({name: batch[name].transpose(0, 1) for name in ("query", "key", "value")})
    assert attention_logits(module, batch).per_head["model"].tolist() == pytest.approx(expected, rel=1e-5)


def test_encoder_layers_are_seen_although_they_have_a_fused_path_and_repeats_are_numbered():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    shared = nn.Sequential(layer, layer)
    found = attention_logits(shared, drawn(2, 5, 8)).per_head
    assert list(found) == ["0.self_attn", "0.self_attn[1]"]
    assert not torch.equal(found["0.self_attn"], found["0.self_attn[1]"])
    unbatched = nn.MultiheadAttention(8, 2)
    x = drawn(5, 8)
    alone = attention_logits(unbatched, (x, x, x)).per_head["model"]
    torch.testing.assert_close(alone, attention_logits(unbatched, (x[:, None],) * 3).per_head["model"])


def test_a_compiled_model_is_measured_uncompiled():
    model = GPT(11, 8, layers=1, heads=2, width=16, seed=0)
    tokens = torch.arange(8).view(1, 8)
    expected = attention_logits(model, tokens)
    wrapped = attention_logits(torch.compile(model, backend="eager"), tokens)
    model.blocks[0].compile(backend="eager")
    inside = attention_logits(model, tokens)
    for found in (wrapped, inside):
        assert list(found.per_head) == list(expected.per_head)
        torch.testing.assert_close(
            found.per_head["blocks.0.attention"], expected.per_head["blocks.0.attention"]
        )


def test_model_is_left_as_it_was_also_after_an_error():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), nn.Linear(8, 2)
    )
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    attention_logits(model, drawn(2, 5, 8))
    with pytest.raises(RuntimeError):
        attention_logits(model, drawn(2, 5, 9))
    assert [module.training for module in model.modules()] == flags
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_attention_is_refused():
    with pytest.raises(
        ValueError, match=r"must call F\.scaled_dot_product_attention or nn\.MultiheadAttention"
    ):
        attention_logits(nn.Linear(3, 2), torch.ones(1, 3))


@pytest.mark.parametrize("low", [-1e9, -1e4, -math.inf, -3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pair_is_forbidden_by_whatever_leaves_nothing_of_it(low, dtype):
    query, key = drawn(2, 3, 4, 8).to(dtype), drawn(2, 3, 5, 8).to(dtype)
    key[:, :, 3:] *= 100  # what the padding holds
    forbidden = torch.arange(5) >= 3
    mask = torch.zeros(4, 5, dtype=dtype).masked_fill(forbidden, low)
    found = attention_logits(Direct(attn_mask=mask), (query, key)).per_head["model"]
    exact = (query.double() @ key.double().mT / math.sqrt(8)).abs()[..., :3].amax((0, 2, 3))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_one_head_of_queries_for_several_of_keys_and_groups_without_a_batch():
    query, key = drawn(2, 1, 4, 8), drawn(2, 3, 5, 8)
    found = attention_logits(Direct(), (query, key)).per_head["model"]
    exact = (query.double() @ key.double().mT / math.sqrt(8)).abs().amax((0, 2, 3))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    query, key = drawn(4, 5, 8), drawn(2, 5, 8)
    found = attention_logits(Direct(enable_gqa=True), (query, key)).per_head["model"]
    exact = (query.double() @ key.double().repeat_interleave(2, 0).mT / math.sqrt(8)).abs().amax((1, 2))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_sequences_of_different_lengths_in_one_nested_tensor():
    rows = [drawn(3, 2, 8), 2 * drawn(5, 2, 8)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)
    found = attention_logits(Direct(), (nested, nested)).per_head["model"]
    each = [one.double().transpose(0, 1) @ one.double().permute(1, 2, 0) / math.sqrt(8) for one in rows]
    exact = torch.stack([one.abs().amax((1, 2)) for one in each]).amax(0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
