"""LayerNormLSTM against the paper's formulas, and without its normalisations against torch's LSTM."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from thalweg.nn import LayerNormLSTM

OPTIONS = [
    {},
    {"num_layers": 2, "bias": False},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 3, "bidirectional": True},
]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(size=4, **options):
    """In float64, with gains and offsets that are not those at first."""
    torch.manual_seed(1)
    module = LayerNormLSTM(size, 5, **options).double()
    for p in module.parameters():
        if p.dim() == 1:
            p.data.uniform_(-1, 1)
    return module


def normalised(values, gains, offsets):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
    return [g * (v - mean) / spread + b for g, v, b in zip(gains, values, offsets, strict=True)]


def times(matrix, vector):
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in matrix]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def transcribed(weights, suffix, sequence, h, c):
    """One sequence through one direction of one layer, in lists: each state, and the last h and c."""
    size = len(h)

    def of(name, missing=None):
        return weights[name].tolist() if name in weights else missing

    w_x, w_h = (of(f"weight_{kind}{suffix}") for kind in ("ih", "hh"))
    gains_x, gains_h, gains_c = (of(f"norm_{kind}{suffix}.weight") for kind in ("ih", "hh", "cell"))
    offsets_x, offsets_h = (of(f"bias_{kind}{suffix}", [0.0] * 4 * size) for kind in ("ih", "hh"))
    offsets_c = of(f"norm_cell{suffix}.bias", [0.0] * size)
    states = []
    for x in sequence:
        from_h = normalised(times(w_h, h), gains_h, offsets_h)
        from_x = normalised(times(w_x, x), gains_x, offsets_x)
        sums = [a + b for a, b in zip(from_h, from_x, strict=True)]
        i, f, g, o = (sums[k * size : (k + 1) * size] for k in range(4))
        c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(g[k]) for k in range(size)]
        inner = normalised(c, gains_c, offsets_c)
        h = [sigmoid(o[k]) * math.tanh(inner[k]) for k in range(size)]
        states.append(h)
    return states, h, c


def whole(module, sequence, h, c):
    """All layers and directions of one sequence, as lists."""
    weights = {name: value.detach() for name, value in module.state_dict().items()}
    last = []
    for layer in range(module.num_layers):
        ahead, *end = transcribed(weights, f"_l{layer}", sequence, h[len(last)], c[len(last)])
        last.append(end)
        if module.bidirectional:
            at = len(last)
            back, *end = transcribed(weights, f"_l{layer}_reverse", sequence[::-1], h[at], c[at])
            last.append(end)
            ahead = [one + other for one, other in zip(ahead, back[::-1], strict=True)]
        sequence = ahead
    return sequence, [h for h, _ in last], [c for _, c in last]


def states(module, n, seed=2):
    places = module.num_layers * (1 + module.bidirectional)
    return draw(places, n, 5, seed=seed), draw(places, n, 5, seed=seed + 1)


@pytest.mark.parametrize("options", OPTIONS)
def test_states_are_the_formulas_unit_by_unit(options):
    module = made(**options)
    x, (h, c) = draw(2, 3, 4), states(module, 2)
    output, (last_h, last_c) = module(x if module.batch_first else x.transpose(0, 1), (h, c))
    output = output if module.batch_first else output.transpose(0, 1)
    for n in range(2):
        found = whole(module, x[n].tolist(), h[:, n].tolist(), c[:, n].tolist())
        for one, wanted in zip((output[n], last_h[:, n], last_c[:, n]), found, strict=True):
            torch.testing.assert_close(one, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def without_norms(lstm):
    module = LayerNormLSTM.of(copy.deepcopy(lstm))
    for name, _ in list(module.named_children()):
        setattr(module, name, nn.Identity())
    return module


def assert_same(found, wanted):
    for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        assert type(one) is type(other)
        if isinstance(one, rnn.PackedSequence):
            assert [None if a is None else a.tolist() for a in one[1:]] == [
                None if b is None else b.tolist() for b in other[1:]
            ]
            one, other = one.data, other.data
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "given state"])
def test_without_normalisations_it_is_torchs_lstm_on_every_kind_of_input(options, given):
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 5, **options).double()
    module = without_norms(lstm)
    hx = states(module, 3) if given else None
    one = None if hx is None else tuple(part[:, 0] for part in hx)
    x = draw(*((3, 6, 4) if lstm.batch_first else (6, 3, 4)))
    assert_same(module(x, hx), lstm(x, hx))
    assert_same(module(draw(6, 4), one), lstm(draw(6, 4), one))
    sequences = [draw(n, 4, seed=n) for n in (2, 6, 4)]  # not in order of length
    packed = rnn.pack_sequence(sequences, enforce_sorted=False)
    assert_same(module(packed, hx), lstm(packed, hx))
    packed = rnn.pack_sequence(sorted(sequences, key=len, reverse=True))
    assert_same(module(packed, hx), lstm(packed, hx))


def test_a_packed_sequence_gets_what_it_gets_alone():
    module = made(num_layers=2, bidirectional=True)
    sequences, (h, c) = [draw(n, 4, seed=n) for n in (2, 5, 3)], states(module, 3)
    output, (last_h, last_c) = module(rnn.pack_sequence(sequences, enforce_sorted=False), (h, c))
    padded = rnn.pad_packed_sequence(output)[0]
    for n, sequence in enumerate(sequences):
        alone, (own_h, own_c) = module(sequence, (h[:, n], c[:, n]))
        torch.testing.assert_close(padded[: len(sequence), n], alone)
        torch.testing.assert_close(last_h[:, n], own_h)
        torch.testing.assert_close(last_c[:, n], own_c)


def test_gradients_equal_finite_differences():
    module = made(2, num_layers=2, bidirectional=True)
    names = [name for name, _ in module.named_parameters()]

    def run(x, h, c, *values):
        out, last = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x, (h, c)))
        return (out, *last)

    leaves = [draw(2, 1, 2), *states(module, 1), *module.parameters()]
    assert torch.autograd.gradcheck(run, [one.detach().requires_grad_() for one in leaves], fast_mode=True)


def test_scaling_all_weights_or_shifting_them_together_changes_nothing():
    """Two rows of the paper's table of invariances, nearly without eps."""
    module = made(eps=1e-12)
    x = draw(3, 2, 4)
    before = module(x, states(module, 2))[0]
    with torch.no_grad():
        for weight in (module.weight_ih_l0, module.weight_hh_l0):
            weight.copy_(3 * weight + 100 * draw(weight.shape[1]))
    torch.testing.assert_close(module(x, states(module, 2))[0], before, rtol=0, atol=1e-8)


def test_dropout_is_between_layers_and_in_training_only():
    module = made(num_layers=2, dropout=1.0)
    one, other = draw(3, 2, 4), draw(3, 2, 4, seed=9)
    assert torch.equal(module(one)[0], module(other)[0])  # the second layer sees nothing of the first
    assert not torch.equal(module(one)[1][0][0], module(other)[1][0][0])
    module.eval()
    assert not torch.allclose(module(one)[0], module(other)[0])


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_only_the_products_are_in_half_precision(bias, monkeypatch):
    module = made(num_layers=2, bias=bias).float()
    x, hx = draw(30, 2, 4).float(), tuple(part.float() for part in states(module, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x.bfloat16(), tuple(part.bfloat16() for part in hx))
        plain = module(x)
    halves = [part.bfloat16().float() for part in hx]

    def product(rows, weight):
        return (rows.bfloat16() @ weight.bfloat16().T).float()

    monkeypatch.setattr("thalweg.nn.lstm.functional.linear", product)
    for one, wanted in ((found, module(x, halves)), (plain, module(x))):
        for tensor, other in zip((one[0], *one[1]), (wanted[0], *wanted[1]), strict=True):
            torch.testing.assert_close(tensor, other, rtol=0, atol=1e-6)


def test_in_half_precision_everything_is():
    module = made().to(torch.bfloat16)
    output, last = module(draw(3, 2, 4).bfloat16())
    assert {t.dtype for t in (output, *last)} == {torch.bfloat16}
