"""Quantization against a loop over groups in plain numbers, its byte formula, and its grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from edited_models import LINEARS, REFUSED, Language, mlp, next_token_loss, same, snapshot, tokens
from torch import nn

from thalweg.surgery import QuantizedLinear, prune, quantize
from thalweg.surgery._packing import pack, unpack


def squared_gradients(model, data):
    """Σ g² over the sequences, one backward pass each."""
    model = Language().eval()
    found = dict.fromkeys(LINEARS, 0.0)
    for row in data.split(1):
        model.zero_grad()
        next_token_loss(model, row).backward()
        found = {name: found[name] + model.get_submodule(name).weight.grad ** 2 for name in LINEARS}
    return found


def slow_weight(weight, bits, group, kept):
    """Group by group: the range without kept entries, the step in half precision, the nearest level."""
    weight, kept = weight.detach().numpy(), kept.numpy()
    result = np.zeros_like(weight)
    for i in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            columns = range(start, start + group)
            inner = [weight[i, j] for j in columns if not kept[i, j]] + [np.float32(0)]
            low, high = min(inner), max(inner)
            step = np.float32(max(np.float16((high - low) / np.float32(2**bits - 1)), np.float16(2.0**-24)))
            zero = np.clip(np.round(-low / step), 0, 2**bits - 1)
            for j in columns:
                if kept[i, j]:
                    result[i, j] = np.float16(weight[i, j])
                else:
                    code = np.clip(np.round(weight[i, j] / step) + zero, 0, 2**bits - 1)
                    result[i, j] = (code - zero) * step
    return torch.from_numpy(result)


def largest(score, count):
    flat = score.flatten()
    chosen = sorted(range(len(flat)), key=lambda i: -flat[i].item())[:count]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[chosen] = True
    return mask.view_as(score)


@pytest.mark.parametrize(("bits", "group"), [(2, 4), (3, None), (4, 2), (8, 4)])
def test_gwq_equals_the_slow_transcription(bits, group):
    model, data = Language(), tokens()
    edited, _ = quantize(model, bits, group, keep=0.05, sequences=data, loss_fn=next_token_loss)
    gradients = squared_gradients(model, data)
    for name in LINEARS:
        weight = model.get_submodule(name).weight
        kept = largest(gradients[name], math.ceil(0.05 * 96))
        expected = slow_weight(weight, bits, group or weight.shape[1], kept)
        layer = edited.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        torch.testing.assert_close(layer.weight, expected, rtol=0, atol=1e-7)
        assert torch.equal(layer.places, kept.flatten().nonzero().flatten().int())


@pytest.mark.parametrize("protect", ["magnitude", "product", "given"])
def test_other_scores_choose_other_entries(protect):
    model, data = Language(), tokens()
    gradients = squared_gradients(model, data)
    score = {
        "magnitude": {n: model.get_submodule(n).weight.abs() for n in LINEARS},
        "product": {n: model.get_submodule(n).weight.abs() * gradients[n].sqrt() for n in LINEARS},
        "given": {n: torch.arange(96.0).view_as(gradients[n]) for n in LINEARS},
    }[protect]
    how = score if protect == "given" else protect
    edited, _ = quantize(model, 3, 4, keep=0.1, protect=how, sequences=data, loss_fn=next_token_loss)
    for name in LINEARS:
        expected = largest(score[name].detach(), 10).flatten().nonzero().flatten()
        assert edited.get_submodule(name).places.tolist() == expected.tolist()


def test_random_entries_follow_the_seed():
    places = [
        quantize(mlp(), 4, 2, keep=0.2, protect="random", seed=s)[0][0].places.tolist() for s in (1, 1, 2)
    ]
    assert len(places[0]) == 5 and places[0] == places[1] != places[2]


def test_a_share_of_the_whole_model_is_exact_and_finds_the_largest():
    model = Language()
    edited, _ = quantize(model, 4, 4, keep=0.1, protect="magnitude", scope="model")
    sizes = torch.cat([model.get_submodule(n).weight.abs().flatten() for n in LINEARS])
    offsets = [96 * i for i in range(4)]
    found = {
        i + int(p) for i, n in zip(offsets, LINEARS, strict=True) for p in edited.get_submodule(n).places
    }
    assert found == set(sizes.topk(math.ceil(0.1 * 384)).indices.tolist())


@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_to_nearest_is_off_by_at_most_half_a_step(bits):
    torch.manual_seed(bits)
    model = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 1))
    edited, _ = quantize(model, bits, 16, keep=0)
    groups = model[0].weight.view(-1, 16)
    step = edited[0].scales.float()[:, None]
    error = (edited[0].weight.view(-1, 16) - groups).abs()
    # The step was rounded to 11 bits, which moves the outermost level by up to 2^b / 2^11 of half a step.
    assert bool((error <= step * (0.5 + 2**bits / 2**11)).all())
    spread = groups.amax(1).clamp(min=0) - groups.amin(1).clamp(max=0)
    torch.testing.assert_close(step[:, 0], spread.detach() / (2**bits - 1), rtol=1e-3, atol=0)
    assert edited[0].weight.view(-1, 16).unique(dim=0).shape[0] > 1
    assert max(len(row.unique()) for row in edited[0].weight.view(-1, 16)) <= 2**bits


def test_outliers_taken_out_leave_a_finer_step():
    model = nn.Sequential(nn.Linear(8, 1, bias=False), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[0.1, -0.1, 0.05, 0.02, 100.0, 0.03, -0.04, 0.0]])
    kept = quantize(model, 4, 8, keep=0.125, protect="magnitude")[0][0].weight
    plain = quantize(model, 4, 8, keep=0)[0][0].weight
    assert kept[0, 4] == 100 and plain[0, 4].item() == pytest.approx(100, rel=1e-3)
    assert (kept - model[0].weight).abs().max() < 0.01 and plain[0, [0, 1, 2, 3]].tolist() == [0] * 4


def test_groups_of_zeros_of_one_value_and_of_kept_entries_alone():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[0.0], [0.7], [5.0]])
    edited, _ = quantize(model, 2, 4, keep=4 / 12, protect="magnitude")
    assert edited[0].places.tolist() == [8, 9, 10, 11]
    torch.testing.assert_close(edited[0].weight, model[0].weight.detach(), rtol=1e-3, atol=0)


def test_pruned_weights_stay_zero():
    pruned, _ = prune(Language(), 0.6)
    rounded, _ = quantize(pruned, 3, 4, keep=0.05, protect="magnitude")
    for name in LINEARS:
        zero = pruned.get_submodule(name).weight == 0
        assert int(zero.sum()) == 57 and bool((rounded.get_submodule(name).weight[zero] == 0).all())


@pytest.mark.parametrize(
    ("bits", "group", "keep"), [(4, 128, 0.01), (3, 16, 0.01), (2, None, 0.0), (5, 32, 0.1)]
)
def test_bytes_are_those_of_the_formula(bits, group, keep):
    model = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 1))
    edited, report = quantize(model, bits, group, keep=keep, protect="magnitude")
    count, groups = 256 * 64, 256 * 64 // (group or 256)
    kept = math.ceil(keep * count)
    expected = count * bits / 8 + groups * (2 + bits / 8) + kept * (2 + 4)
    one = report.layers["0"]
    assert one.bytes_after - 64 * 4 == math.ceil(expected)
    in_bits = bits + (16 + bits) / (group or 256) + kept / count * 48
    assert (one.bytes_after - 64 * 4) * 8 / count == pytest.approx(in_bits, abs=8 / count)
    stored = sum(t.numel() * t.element_size() for t in (*edited.parameters(), *edited.buffers()))
    assert report.bytes_after == stored and report.bytes_before == 4 * (count + 64 + 64 + 1)
    error = (edited[0].weight - model[0].weight).norm() / model[0].weight.norm()
    assert one.error == pytest.approx(error.item(), rel=1e-5)
    assert one.what == f"{bits} bits in groups of {group or 256}, {kept} entries kept"


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_undone_and_leaves_no_gap(bits):
    codes = torch.randint(2**bits, (3, 7), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(21 * bits / 8)
    assert torch.equal(unpack(packed, bits, 21), codes.flatten())
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes.flatten()))
    assert bytes(packed.tolist()) == number.to_bytes(len(packed), "little")


def test_the_given_model_is_untouched_and_the_result_computes_saves_and_exports():
    model = Language().eval()
    before, random = snapshot(model), torch.get_rng_state()
    edited, _ = quantize(model, 4, 4, sequences=tokens(), loss_fn=next_token_loss)
    assert same(model, before) and torch.equal(torch.get_rng_state(), random)
    other, _ = quantize(Language(seed=4).eval(), 4, 4, protect="random")
    assert not any(module.training for module in edited.modules())
    plain = Language().eval()
    plain.load_state_dict(
        {**model.state_dict(), **{f"{n}.weight": edited.get_submodule(n).weight for n in LINEARS}}
    )
    x = tokens()
    torch.testing.assert_close(edited(x), plain(x))
    other.load_state_dict(edited.state_dict())
    torch.testing.assert_close(other(x), edited(x))
    torch.testing.assert_close(torch.export.export(edited, (x,)).module()(x), edited(x))
    edited.blocks[0].expand.bias.data.zero_()
    assert same(model, before)


def test_other_dtypes_are_kept():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1)).bfloat16()
    edited, _ = quantize(model, 8, 8, keep=0)
    assert edited[0].weight.dtype == torch.bfloat16 == edited(torch.ones(1, 8).bfloat16()).dtype
    torch.testing.assert_close(edited[0].weight, model[0].weight.detach(), rtol=0.02, atol=0.01)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_understood_is_named_and_left_alone(case):
    model, layers, message = REFUSED[case]
    before = snapshot(model) if case not in ("meta", "lazy", "not finite") else None
    with pytest.raises(ValueError, match=message):
        quantize(model, 4, None, keep=0, layers=layers)
    assert before is None or same(model, before)


def huge():
    model = Language()
    model.head.weight.data[0, 0] = 1e5
    return model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 1}, "bits must be one of 2, 3, 4, 5, 6, 7, 8; got 1"),
        ({"bits": 2.5}, "bits must be one of"),
        ({"group": 5}, r"layer 'blocks.0.expand' \(Linear\) must be with inputs in groups of 5, got 8"),
        ({"group": 0}, "group must be an integer >= 1, got 0"),
        ({"keep": 1.0}, r"keep must be in \[0, 1\), got 1.0"),
        ({"protect": "weight"}, "protect must be one of gradient, magnitude, product, random; got 'weight'"),
        ({"loss_fn": None}, "loss_fn must be given for protect 'gradient', got None"),
        ({"sequences": None}, "sequences must be an iterable of batches, got NoneType"),
        ({"scope": "row"}, "scope must be one of layer, model; got 'row'"),
        ({"protect": {"head": torch.ones(2)}}, r"protect of 'head' must be a tensor \(7, 8\) .* got \(2,\)"),
        ({"layers": ["head"], "protect": "magnitude"}, r"layer 'head' .* with weights within ±65504"),
    ],
)
def test_bad_arguments_are_named(given, message):
    model = huge() if given.get("layers") else Language()
    before = snapshot(model)
    arguments = {"bits": 4, "group": 4, "sequences": tokens(), "loss_fn": next_token_loss, **given}
    with pytest.raises(ValueError, match=message):
        quantize(model, **arguments)
    assert same(model, before)


def test_bits_may_be_whole_numbers_of_any_type():
    whole, written = (quantize(Language(), bits, 4, keep=0)[0] for bits in (3, 3.0))
    assert same(written, snapshot(whole))
