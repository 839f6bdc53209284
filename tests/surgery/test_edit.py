"""What all edits share: which layers are meant, what counts as tied, what a report says."""

from __future__ import annotations

import copy

import pytest
import torch
from edited_models import LINEARS, Block, Language, mlp
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from thalweg.surgery import align, factorize, prune, quantize
from thalweg.surgery._edit import (
    blocks_of,
    chosen_layers,
    copied,
    inner_layers,
    relative_error,
    size_in_bytes,
)
from thalweg.tasks import GPT


class Parts(nn.Module):
    """Encoder and decoder with blocks of their own, one of them nested in a list of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Language().blocks[0] for _ in range(2))) for _ in range(2)
        )
        self.single = nn.ModuleList([Language().blocks[0]])
        self.head = nn.Linear(8, 2)


def test_blocks_are_what_stands_beside_its_like():
    assert list(blocks_of(Language())) == ["blocks.0", "blocks.1"]
    assert list(blocks_of(Parts())) == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]
    assert list(blocks_of(mlp())) == []


def test_a_block_inside_a_block_is_part_of_it():
    outer = nn.Sequential(*(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2)))
    for layer in outer:
        layer.inner = Language().blocks
    assert list(blocks_of(outer)) == ["0", "1"]


def test_layers_in_blocks_are_meant_or_all_but_the_last():
    assert inner_layers(Language()) == LINEARS
    assert inner_layers(mlp()) == ["0", "2"]
    assert len(inner_layers(Parts())) == 8 and "stem" not in inner_layers(Parts())
    gpt = GPT(11, 8, layers=2, heads=2, width=8, tied=True)
    assert len(inner_layers(gpt)) == 8 and all(name.startswith("blocks.") for name in inner_layers(gpt))
    convolved = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    assert inner_layers(convolved) == [] and inner_layers(convolved, (nn.Linear, nn.Conv2d)) == ["0"]


def test_a_head_tied_to_the_embedding_is_refused_only_if_it_is_meant():
    gpt = GPT(11, 8, layers=2, heads=2, width=8, tied=True)
    assert len(chosen_layers(gpt)) == 8
    with pytest.raises(ValueError, match=r"layer 'head' .* got one tied to \['tokens.weight'\]"):
        chosen_layers(gpt, ["head"])


def test_weights_side_by_side_in_one_storage_are_not_tied():
    flat = torch.randn(32)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight = nn.Parameter(flat[:16].view(4, 4))
    model[1].weight = nn.Parameter(flat[16:].view(4, 4))
    assert list(chosen_layers(model)) == ["0", "1"]
    model[1].weight = nn.Parameter(flat[12:28].view(4, 4))
    with pytest.raises(ValueError, match=r"layer '0' .* got one tied to \['1.weight'\]"):
        chosen_layers(model)


def test_a_default_that_is_not_understood_says_what_to_do():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2)
    with pytest.raises(
        ValueError, match=r"'layers.0.self_attn.out_proj' .* a Linear; layers=\[...\] names what"
    ):
        chosen_layers(model)
    with pytest.raises(ValueError, match=r"names what to edit instead, such as 'layers.0.linear1'"):
        chosen_layers(model)
    recurrent = nn.ModuleDict({"cells": nn.LSTM(4, 4), "head": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match=r"before its last layer, but 'cells' \(LSTM\)"):
        chosen_layers(recurrent)


def test_copies_are_of_what_is_inside_wrappers():
    assert type(copied(nn.DataParallel(mlp()))) is nn.Sequential
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got list"):
        copied([mlp()])
    stuck = mlp()
    stuck.lock = (one for one in "a generator")
    with pytest.raises(
        ValueError, match=r"must be copyable by copy\.deepcopy, got Sequential with TypeError"
    ):
        copied(stuck)


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: Block(4, 6)])
def test_a_compiled_child_is_edited_and_compiled_anew(make, run_before):
    x = torch.randn(3, 4)
    inside = make()
    plain = nn.Sequential(inside, nn.Linear(4, 2)).eval()
    compiled = nn.Sequential(torch.compile(copy.deepcopy(inside), backend="eager"), plain[1]).eval()
    if run_before:
        compiled(x)
    below = "0.expand" if isinstance(inside, Block) else "0"
    above = below.replace("0", "0._orig_mod")
    for edit in (
        lambda model, name: factorize(model, ranks={name: 1}, layers=[name]),
        lambda model, name: quantize(model, 2, 2, keep=0, layers=[name]),
    ):
        new, report = edit(compiled, above)
        torch.testing.assert_close(new(x), edit(plain, below)[0](x))
        assert list(report.layers) == [above] and hasattr(new[0], "_orig_mod") and not new[0].training
        torch.testing.assert_close(compiled(x), plain(x))


def test_sizes_and_errors():
    gpt = GPT(11, 8, layers=1, heads=2, width=8, tied=True)
    assert size_in_bytes(gpt) == 4 * sum(p.numel() for p in gpt.parameters())
    norm = nn.BatchNorm1d(3)
    assert size_in_bytes(norm) == 4 * 12 + 8
    zero, one = torch.zeros(3), torch.ones(3)
    assert relative_error(zero, zero) == 0 and relative_error(zero, one) == float("inf")
    assert relative_error(2 * one, -one) == pytest.approx(1.5)


def test_a_report_prints_a_line_a_layer():
    _, report = prune(mlp(), 0.5)
    first, *rest = str(report).splitlines()
    assert first == f"2 layers, {report.bytes_before:,} -> {report.bytes_after:,} bytes"
    assert [line.split(":")[0] for line in rest] == ["  0", "  2"]
    with pytest.raises(AttributeError):
        report.layers = {}


class Kept(nn.Module):
    """Runs its layer through something else than the module tree."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        if how == "function":
            self.run = [lambda x: self.first(x)]
        elif how == "default":
            self.run = {"first": lambda x, layer=self.first: layer(x)}
        elif how == "method":
            self.run = self._first
        else:
            self.run = [self.first]

    def _first(self, x):
        return self.first(x)

    def forward(self, x):
        runs = self.run if isinstance(self.run, dict) else {"first": self.run}
        run = runs["first"][0] if isinstance(runs["first"], list) else runs["first"]
        return self.last(run(x).relu())


def test_functions_that_would_go_on_running_the_old_weights_are_refused():
    for how in ("function", "default"):
        with pytest.raises(ValueError, match=r"functions that hold its own modules.* 'run' of '' \(Kept\)"):
            copied(Kept(how))
    patched = nn.Sequential(mlp())
    inner = patched[0].forward
    patched[0].forward = lambda x: 2 * inner(x)
    with pytest.raises(ValueError, match=r"got 'forward' of '0' \(Sequential\)"):
        prune(patched)
    # As in a notebook, where everything is global.
    cells = {"model": nn.Sequential(mlp())}
    exec("old = model.forward\nmodel.forward = lambda x: 2 * old(x)", cells)
    with pytest.raises(ValueError, match=r"got 'forward' of '' \(Sequential\)"):
        prune(cells["model"])
    x = torch.randn(3, 4)
    for how in ("method", "list"):
        model = copied(Kept(how))
        with torch.no_grad():
            model.first.weight.zero_()
            model.first.bias.zero_()
        torch.testing.assert_close(model(x), model.last.bias.expand(3, -1))


@pytest.mark.parametrize("edit", [lambda model: quantize(model, 4, 4, keep=0), factorize])
def test_layers_that_a_list_would_go_on_running_are_not_replaced(edit):
    with pytest.raises(ValueError, match=r"layer 'first' \(Linear\) must be kept .* also in 'run' of ''"):
        edit(Kept("list"))
    edit(Kept("method"))


def test_a_module_compiled_in_place_is_copied_as_it_was_written():
    model = mlp()
    model.compile()
    assert copied(model)._compiled_call_impl is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "made",
    [nn.utils.weight_norm, lambda layer: l1_unstructured(layer, "weight", 0.5)],
    ids=("weight_norm", "prune"),
)
def test_models_whose_weights_hooks_make_are_copied_after_training(made):
    model, other, x = mlp(), mlp(), torch.randn(5, 4)
    for one in (model, other):
        made(one[0])
        one(x).sum().backward()
    new = copied(model)
    assert torch.equal(new(x), model(x)) and new[0].weight is not model[0].weight
    moved, report = align(model, other, x)
    assert list(report.permutations) == ["2"] and report.error < 1e-5
    torch.testing.assert_close(moved(x), model(x))
    with pytest.raises(ValueError, match=r"layer '0' \(Linear\) must be with a plain weight, got Tensor"):
        prune(model)
