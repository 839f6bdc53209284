"""Models of the transformers library keep the short way: nothing of theirs has to be written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from thalweg.probe import example_gradient_norms

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def gpt2():
    sizes = {"vocab_size": 20, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **SMALL)
    )


def bert():
    return transformers.BertForTokenClassification(transformers.BertConfig(vocab_size=20, **SMALL))


@pytest.mark.parametrize("build", [gpt2, llama, bert])
def test_norms_equal_those_of_single_examples(build):
    torch.manual_seed(0)
    model = build().eval()
    tokens = torch.randint(1, 20, (5, 7))

    def loss_fn(model, batch):
        logits = model(input_ids=batch["tokens"]).logits
        targets = batch["tokens"] % logits.shape[-1]
        return functional.cross_entropy(logits.mT, targets, reduction="none").mean(1)

    found = example_gradient_norms(model, {"tokens": tokens}, loss_fn)
    assert found.materialised == ()
    for index in range(5):
        loss = loss_fn(model, {"tokens": tokens[index : index + 1]})[0]
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for norms, gradient in zip(found.per_layer.values(), gradients, strict=True):
            expected = 0.0 if gradient is None else gradient.norm().item()
            assert norms[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


# A model may leave a mask away that masks nothing: padded batches and others then compute different things.
@pytest.mark.parametrize("padded", [(), (1,), (0, 2, 4)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_padding_anywhere_in_the_batch_keeps_the_short_way(padded, chunk_size):
    torch.manual_seed(0)
    model = llama().eval()
    batch = {"input_ids": torch.randint(1, 20, (5, 7)), "attention_mask": torch.ones(5, 7, dtype=torch.long)}
    for index in padded:
        batch["attention_mask"][index, 4:] = 0

    def loss_fn(model, batch):
        losses = functional.cross_entropy(model(**batch).logits.mT, batch["input_ids"], reduction="none")
        return (losses * batch["attention_mask"]).mean(1)

    found = example_gradient_norms(model, batch, loss_fn, chunk_size=chunk_size)
    assert found.materialised == ()
    for index in range(5):
        loss = loss_fn(model, {name: t[index : index + 1] for name, t in batch.items()})[0]
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.stack([g.norm() for g in gradients]).norm().item()
        assert found.norms[index].item() == pytest.approx(expected, rel=1e-4)
