"""nn.convert: what is replaced, what stays tied and shared, and what is refused without a change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from thalweg.nn import GhostBatchNorm, convert


def ghost(norm):
    return GhostBatchNorm.of(norm, size=4)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def snapshot(model):
    return [type(m) for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    kinds, values = snapshot(model)
    return kinds == before[0] and all(torch.equal(values[k], v) for k, v in before[1].items())


def test_a_class_and_a_name_say_what_is_replaced_and_the_first_key_decides():
    parts = {"2": lambda _: nn.ReLU(), nn.modules.batchnorm._BatchNorm: ghost}
    assert [type(m) for m in convert(network(), parts)] == [nn.Linear, GhostBatchNorm, nn.ReLU, nn.Linear]
    with pytest.raises(ValueError, match="got Tanh"):
        convert(network(), {**parts, nn.Tanh: lambda _: nn.GELU()})


def test_the_model_stays_and_the_copy_has_its_numbers_mode_and_state_dict():
    model = network().eval()
    before = snapshot(model)
    made = convert(model, {nn.BatchNorm1d: ghost})
    assert same(model, before) and not made[1].training
    assert not {id(p) for p in made.parameters()} & {id(p) for p in model.parameters()}
    made.load_state_dict(model.state_dict())
    x = torch.randn(8, 3)
    assert torch.equal(made(x), model(x))


def test_what_is_skipped_stays_with_all_inside():
    model = nn.ModuleDict({"stem": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 2)})
    made = convert(model, {nn.Linear: lambda m: nn.Identity()}, skip=["ste*"])
    assert isinstance(made.stem[0], nn.Linear) and isinstance(made.head, nn.Identity)


def test_a_module_with_two_names_is_converted_once_and_stays_shared():
    norm = nn.BatchNorm1d(3)
    calls = []
    made = convert(
        nn.Sequential(norm, nn.ReLU(), norm), {nn.BatchNorm1d: lambda m: calls.append(m) or ghost(m)}
    )
    assert made[0] is made[2] and isinstance(made[0], GhostBatchNorm) and len(calls) == 1


def test_the_whole_model_can_be_what_is_replaced_or_wrapped():
    norm = nn.BatchNorm1d(3)
    assert isinstance(convert(norm, {nn.BatchNorm1d: ghost}), GhostBatchNorm)
    wrapped = convert(
        network(), {nn.Linear: lambda layer: nn.Sequential(layer, nn.LayerNorm(layer.out_features))}
    )
    assert [type(m) for m in wrapped[0]] == [nn.Linear, nn.LayerNorm]
    assert wrapped(torch.randn(5, 3)).shape == (5, 2)


def test_new_parameters_come_to_the_device_of_the_model():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1, device="meta"))

        def _apply(self, fn, recurse=True):
            self.gain = nn.Parameter(torch.ones(1))
            return self

    made = convert(network(), {nn.Tanh: lambda _: Elsewhere()})
    assert made[2].gain.device == made[0].weight.device


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_weight_stays_tied_or_is_refused():
    def keeps(layer):
        made = nn.Linear(layer.in_features, layer.out_features, bias=False)
        made.weight = layer.weight
        return made

    model = Tied()
    before = snapshot(model)
    made = convert(model, {"head": keeps})
    assert made.head.weight is made.embedding.weight is not model.head.weight
    with pytest.raises(ValueError, match=r"module 'head' \(Linear\) shares a parameter .* not keep tied"):
        convert(model, {"head": lambda layer: nn.Linear(3, 5)})
    assert same(model, before) and model.head.weight is model.embedding.weight


def test_hooks_and_parametrizations_are_never_lost_silently():
    model = network()
    handle = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"module '0' \(Linear\) has hooks that Linear would lose"):
        convert(model, {nn.Linear: lambda m: nn.Linear(m.in_features, m.out_features)})
    handle.remove()
    weight_norm(model[3])
    with pytest.raises(ValueError, match=r"module '3' .* has a parametrization that Identity would lose"):
        convert(model, {"3": lambda m: nn.Identity()})
    assert convert(model, {"3": lambda m: nn.Sequential(m)})(torch.randn(4, 3)).shape == (4, 2)


def test_a_failure_in_the_last_module_leaves_the_model_untouched_and_names_it():
    model = network()
    before = snapshot(model)

    def refuses(layer):
        layer.weight.data.zero_()
        if layer.in_features == 4:
            raise ValueError("in_features must be 3, got 4")
        return nn.Identity()

    with pytest.raises(ValueError, match=r"^module '3' \(Linear\): in_features must be 3, got 4$"):
        convert(model, {nn.Linear: refuses})
    assert same(model, before)


def test_attention_whose_weights_are_read_past_the_layer_is_refused():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(
        ValueError, match=r"module 'self_attn\.out_proj' .* MultiheadAttention reads its weight"
    ):
        convert(layer, {nn.Linear: lambda m: nn.Identity()})
    stack = nn.TransformerEncoder(layer, 2)
    with pytest.raises(ValueError, match=r"reads its weight: skip 'layers\.0\.self_attn' and its like"):
        convert(stack, {nn.Linear: lambda m: nn.Identity()})
    with pytest.raises(ValueError, match=r"skip must be a collection of names, got the string '\*self_attn'"):
        convert(stack, {nn.Linear: lambda m: nn.Identity()}, skip="*self_attn")
    made = convert(stack, {nn.Linear: lambda m: nn.Identity()}, skip=["*self_attn"])
    assert type(made.layers[1].linear1) is nn.Identity


def test_a_converted_encoder_layer_computes_with_its_new_modules_in_evaluation():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    def doubled(layer):
        made = Doubled(layer.in_features, layer.out_features)
        made._parameters = layer._parameters
        return made

    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    made = convert(encoder, {"layers.*.linear2": doubled})
    x, mask = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, False, False]])
    expected = copy.deepcopy(encoder)
    with torch.no_grad():
        for p in expected.layers[0].linear2.parameters():
            p *= 2
        plain = expected(x, src_key_padding_mask=mask)[~mask]
        assert torch.allclose(made(x, src_key_padding_mask=mask)[~mask], plain, atol=1e-6)
        assert not torch.allclose(encoder(x, src_key_padding_mask=mask)[~mask], plain, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "parts", "skip", "message"),
    [
        (3, {nn.Tanh: ghost}, (), r"model must be a torch\.nn\.Module, got int"),
        (network(), {}, (), r"parts must map classes or names to functions, got \{\}"),
        (
            network(),
            {nn.Tanh: nn.ReLU()},
            (),
            r"parts\[Tanh\] must be a function of the old module, got ReLU",
        ),
        (network(), {3: ghost}, (), "module classes or names as keys, got 3"),
        (
            network(),
            {nn.GELU: ghost},
            (),
            "got GELU, and the model has BatchNorm1d, Linear, Sequential, Tanh",
        ),
        (nn.ModuleDict({"head": nn.Tanh()}), {"haed": ghost}, (), r"got 'haed' \(did you mean head\?\)"),
        (network(), {nn.Tanh: ghost}, ["9"], "skip must name modules of the model, got '9'"),
        (
            network(),
            {nn.Tanh: ghost},
            (),
            r"module '2' \(Tanh\): norm must be a BatchNorm1d, 2d or 3d, got Tanh",
        ),
        (
            network(),
            {nn.Tanh: lambda m: None},
            (),
            r"module '2' \(Tanh\) must be replaced by a module, got None",
        ),
        (
            network().to("meta"),
            {nn.BatchNorm1d: ghost},
            (),
            r"module '1' .* must hold numbers, .* meta device",
        ),
        (
            nn.Sequential(nn.LazyLinear(3)),
            {nn.Linear: ghost},
            (),
            r"module '0' .* lazy one: run the model once",
        ),
        (torch.jit.script(nn.Tanh()), {nn.Tanh: ghost}, (), "must be in eager form"),
        (
            torch.compile(network()),
            {nn.Tanh: ghost},
            (),
            "in eager form, got OptimizedModule: compile it after",
        ),
    ],
)
def test_convert_refuses(model, parts, skip, message):
    with pytest.raises(ValueError, match=message):
        convert(model, parts, skip=skip)


def test_a_model_that_cannot_be_copied_is_refused():
    model = network()
    model.cache = model[0].weight * 2
    with pytest.raises(ValueError, match="model must be one that can be copied, got Sequential: "):
        convert(model, {nn.BatchNorm1d: ghost})


def test_a_wrapped_model_is_refused_wherever_the_wrapper_is(process_group):
    ddp = nn.parallel.DistributedDataParallel(network())
    with pytest.raises(ValueError, match="model must not be wrapped yet, got DistributedDataParallel"):
        convert(ddp, {nn.BatchNorm1d: ghost})
    with pytest.raises(ValueError, match="module '1' must not be wrapped yet"):
        convert(nn.Sequential(nn.Tanh(), ddp), {nn.BatchNorm1d: ghost})


def test_a_part_of_a_compiled_module_is_refused_unless_it_stays_the_same_module():
    model = nn.Sequential(torch.compile(network(), backend="eager"), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"module '0._orig_mod.1' is compiled: convert first"):
        convert(model, {nn.BatchNorm1d: ghost})
    assert isinstance(convert(model, {"1": ghost})[1], GhostBatchNorm)
    made = convert(model, {nn.BatchNorm1d: lambda norm: norm.requires_grad_(False)})
    assert not made[1].weight.requires_grad


def test_what_a_new_module_holds_of_the_old_keeps_its_own_mode():
    block = network()
    block[1].eval()
    made = convert(nn.Sequential(block), {"0": lambda old: nn.Sequential(old, nn.Tanh())})
    assert made[0].training and made[0][1].training and not made[0][0][1].training


def test_a_part_that_breaks_is_named_whatever_it_raises():
    with pytest.raises(ValueError, match=r"module '2' \(Tanh\): KeyError\('gain'\)"):
        convert(network(), {nn.Tanh: lambda old: {}["gain"]})
