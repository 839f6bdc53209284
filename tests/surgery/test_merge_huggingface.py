"""Library models whose code was not written for tracing: units are found, and permuting them is sound."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import shuffled

from thalweg.surgery._axis_run import movable, run, tensors_in, trace
from thalweg.surgery._symmetry import symmetry

transformers = pytest.importorskip("transformers")

TEXT = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Name to configuration, and how many groups of units it has.
MODELS = {
    # The stream, and of each block heads, inside queries and keys, inside values, the feed-forward layer.
    "GPT2LMHeadModel": ({**TEXT, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}, 1 + 2 * 4),
    # The stream, and groups of heads, heads of a group, inside values, the gated layer: rotated keys stay.
    "LlamaForCausalLM": (
        {
            **TEXT,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
        1 + 2 * 4,
    ),
    # Three kinds of attention; heads that share position biases are one group in each stack. The encoder's
    # stream is an output.
    "T5ForConditionalGeneration": (
        {**TEXT, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 3},
        19,
    ),
    "SwinForImageClassification": (
        {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32},
        2 + 4 * 4,
    ),
    "RegNetForImageClassification": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4},
        15,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_groups_of_units_of_library_models(name):
    options, groups = MODELS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**options)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    batch = {"pixel_values": torch.randn(2, 3, 32, 32).double()}
    if "vocab_size" in options:
        batch = {"input_ids": torch.randint(3, 60, (2, 7)), "use_cache": False}
    if name.startswith("T5"):
        batch["decoder_input_ids"] = batch["input_ids"]
    seen, answer = trace(model, batch)
    found = symmetry(seen)
    assert len(found.units) == groups
    moved = copy.deepcopy(model)
    with torch.no_grad():
        found.apply(movable(moved), shuffled(found))
        again = run(moved, batch)
    # Some normalise in float32 whatever they are given.
    for one, other in zip(tensors_in(answer), tensors_in(again), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
