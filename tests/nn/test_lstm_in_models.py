"""LayerNormLSTM in a model: converted with its weights, started as it should be, refused where it must."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from thalweg.nn import LayerNormLSTM, convert, spectral_regularization


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.memory, self.head = (
            nn.Embedding(9, 4),
            nn.LSTM(4, 5, 2, dropout=0.1),
            nn.Linear(5, 9),
        )

    def forward(self, tokens):
        return self.head(self.memory(self.words(tokens))[0])


def test_a_model_is_converted_with_its_weights_and_stays_itself():
    torch.manual_seed(0)
    model = Reader()
    before = copy.deepcopy(model.state_dict())
    new = convert(model.eval(), {nn.LSTM: lambda lstm: LayerNormLSTM.of(lstm, eps=1e-4)})
    memory = new.memory
    assert type(memory) is LayerNormLSTM and not memory.training and memory.dropout == 0.1
    for name, value in model.memory.state_dict().items():
        assert torch.equal(memory.state_dict()[name], value)
    assert set(memory.state_dict()) - set(model.memory.state_dict()) == {
        f"norm_{kind}_l{layer}.{what}"
        for layer in range(2)
        for kind, what in (("ih", "weight"), ("hh", "weight"), ("cell", "weight"), ("cell", "bias"))
    }
    for norm in memory.children():
        assert norm.eps == 1e-4 and bool((norm.weight == 1).all())
        assert norm.bias is None or not norm.bias.any()
    assert type(model.memory) is nn.LSTM
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    new(torch.arange(6).view(3, 2)).sum().backward()
    assert all(p.grad is not None for p in new.parameters())


def test_an_lstm_on_its_own_lends_its_parameters_themselves():
    lstm = nn.LSTM(4, 5, bias=False, batch_first=True, bidirectional=True).to(torch.bfloat16)
    module = LayerNormLSTM.of(lstm.eval())
    assert (
        module.weight_hh_l0_reverse is lstm.weight_hh_l0_reverse
        and module.batch_first
        and not module.training
    )
    assert all(one is other for one, other in zip(module._flat_weights, lstm._flat_weights, strict=True))
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert not [name for name, _ in module.named_parameters() if "bias" in name]


def test_what_is_made_anew_has_torchs_weights_and_no_offset():
    torch.manual_seed(0)
    module = LayerNormLSTM(40, 100, 2)
    for name, p in module.named_parameters():
        if p.dim() > 1:
            assert 0.09 < p.abs().max() <= 0.1 and p.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
        else:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight"))))
    values = [p.clone() for p in module.parameters()]
    torch.manual_seed(0)
    assert all(map(torch.equal, LayerNormLSTM(40, 100, 2).parameters(), values))
    for p in module.parameters():
        p.data.fill_(3)
    torch.manual_seed(0)
    module.reset_parameters()
    assert all(map(torch.equal, module.parameters(), values))


def test_penalties_take_its_gates_apart_and_its_gains_as_gains():
    norms = spectral_regularization(LayerNormLSTM(3, 4, bidirectional=True), 1e-2).norms()
    matrices = [
        f"weight_{kind}_l0{way}[{gate}]"
        for way in ("", "_reverse")
        for kind in ("ih", "hh")
        for gate in range(4)
    ]
    assert list(norms) == matrices


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.LSTM(4, 5), "weight_hh_l0")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: LayerNormLSTM(0, 5), "input_size must be an integer >= 1, got 0"),
        (lambda: LayerNormLSTM(4, 1), "hidden_size must be an integer >= 2, got 1"),
        (lambda: LayerNormLSTM(4, 5, 0), "num_layers must be an integer >= 1, got 0"),
        (lambda: LayerNormLSTM(4, 5, 2, dropout=1.5), r"dropout must be in \[0, 1\], got 1\.5"),
        (lambda: LayerNormLSTM(4, 5, bidirectional=2), "bidirectional must be True or False, got 2"),
        (lambda: LayerNormLSTM(4, 5, eps=0), r"eps must be in \(0, inf\), got 0"),
        (lambda: LayerNormLSTM.of(nn.GRU(4, 5)), r"lstm must be a torch\.nn\.LSTM, got GRU"),
        (lambda: LayerNormLSTM.of(LayerNormLSTM(4, 5)), r"lstm must be a torch\.nn\.LSTM, got LayerNormLSTM"),
        (lambda: LayerNormLSTM.of(nn.LSTM(4, 5, proj_size=3)), "no projection, got proj_size 3"),
        (lambda: LayerNormLSTM.of(parametrized()), r"lstm must be a torch\.nn\.LSTM, got ParametrizedLSTM"),
        (lambda: LayerNormLSTM.of(nn.LSTM(4, 1)), "hidden_size must be an integer >= 2, got 1"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


ZEROS = torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("input", "hx", "said"),
    [
        (
            torch.zeros(6, 3, 5),
            None,
            r"input must have 2 or 3 dimensions, the last of 4, got shape \(6, 3, 5\)",
        ),
        (torch.zeros(4), None, r"input must have 2 or 3 dimensions, .* got shape \(4,\)"),
        (torch.zeros(0, 3, 4), None, r"input must have at least one step, got shape \(0, 3, 4\)"),
        (
            torch.zeros(6, 3, 4).double(),
            None,
            r"input must be torch\.float32 like the weights, got .*float64",
        ),
        (rnn.pack_sequence([torch.zeros(2, 5)]), None, r"packed data must have 2 dimensions, .* \(2, 5\)"),
        (torch.zeros(6, 3, 4), ZEROS, r"hx must be a pair of tensors \(h, c\), got Tensor"),
        (torch.zeros(6, 3, 4), (ZEROS, None), r"hx\[1\] must be a tensor, got NoneType"),
        (torch.zeros(6, 3, 4), (ZEROS, ZEROS[:1]), r"hx\[1\] must have shape \(2, 3, 5\), got \(1, 3, 5\)"),
        (torch.zeros(6, 4), (ZEROS, ZEROS), r"hx\[0\] must have shape \(2, 5\), got \(2, 3, 5\)"),
        (torch.zeros(6, 3, 4), (ZEROS, ZEROS.double()), r"hx\[1\] must be torch\.float32 like the weights"),
        (rnn.pack_sequence([torch.zeros(2, 4)]), (ZEROS, ZEROS), r"hx\[0\] must have shape \(2, 1, 5\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(input, hx, said):
    with pytest.raises(ValueError, match=said):
        LayerNormLSTM(4, 5, 2)(input, hx)
