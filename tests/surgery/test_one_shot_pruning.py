"""Pruning against a slow transcription: block by block, row by row, one sequence after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from edited_models import LINEARS, REFUSED, Language, mlp, next_token_loss, same, snapshot, tokens
from torch import nn
from torch.nn import functional

from thalweg.surgery import prune


def slow_gblm(model, sequences, sparsity, alpha, power, with_inputs=True):
    """Gradients at the dense weights; then a block at a time: inputs, scores row by row, new outputs."""
    pruned = copy.deepcopy(model).eval().double()
    dense = copy.deepcopy(pruned)
    gradients = dict.fromkeys(LINEARS, 0.0)
    for n in range(len(sequences)):
        dense.zero_grad()
        next_token_loss(dense, sequences[n : n + 1]).backward()
        for name in LINEARS:
            gradients[name] = gradients[name] + (alpha * dense.get_submodule(name).weight.grad).abs() ** power
    with torch.no_grad():
        streams = [pruned.tokens(sequences[n : n + 1, :-1]) for n in range(len(sequences))]
        for i, block in enumerate(pruned.blocks):
            middles = [functional.gelu(block.expand(x)) for x in streams]
            for name, inputs in (("expand", streams), ("contract", middles)):
                layer = getattr(block, name)
                norm = sum(x.reshape(-1, x.shape[-1]).square().sum(0) for x in inputs) / len(inputs)
                slope = gradients[f"blocks.{i}.{name}"] ** (1 / power)
                score = layer.weight.abs() * (slope + (norm.sqrt() if with_inputs else 0))
                for row in range(len(score)):
                    lowest = sorted(range(score.shape[1]), key=lambda j: score[row, j].item())
                    for j in lowest[: int(score.shape[1] * sparsity)]:
                        layer.weight[row, j] = 0
            streams = [block(x) for x in streams]
    return pruned


def zeros(model):
    return {name: model.get_submodule(name).weight == 0 for name in LINEARS}


def equal_masks(one, other):
    return all(torch.equal(one[name], other[name]) for name in LINEARS)


@pytest.mark.parametrize(("aggregate", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_gblm_equals_the_slow_transcription(aggregate, power, sparsity):
    model, data = Language(), tokens()
    pruned, _ = prune(
        model, sparsity, score="gblm", sequences=data, loss_fn=next_token_loss, alpha=3.0, aggregate=aggregate
    )
    expected = slow_gblm(model, data, sparsity, 3.0, power)
    assert equal_masks(zeros(pruned), zeros(expected))
    for name in LINEARS:
        torch.testing.assert_close(
            pruned.get_submodule(name).weight.double(), expected.get_submodule(name).weight
        )
    for name in ("tokens.weight", "head.weight", "head.bias", "blocks.0.expand.bias"):
        assert torch.equal(pruned.state_dict()[name], model.state_dict()[name])


def test_without_gradients_it_is_wanda_and_without_inputs_gradients_alone():
    model, data = Language(), tokens()
    wanda = prune(model, 0.5, score="wanda", sequences=data, loss_fn=next_token_loss)[0]
    none = prune(model, 0.5, score="gblm", sequences=data, loss_fn=next_token_loss, alpha=0.0)[0]
    assert equal_masks(zeros(wanda), zeros(none))
    assert equal_masks(zeros(wanda), zeros(slow_gblm(model, data, 0.5, 0.0, 1)))
    gradient = prune(model, 0.5, score="gradient", sequences=data, loss_fn=next_token_loss)[0]
    assert equal_masks(zeros(gradient), zeros(slow_gblm(model, data, 0.5, 1.0, 1, with_inputs=False)))
    assert not equal_masks(zeros(wanda), zeros(gradient))


def test_wanda_needs_no_loss_where_the_model_runs_alone():
    model, data = Language(), tokens()[:, :-1]
    plain = prune(model, 0.5, score="wanda", sequences=data)[0]
    named = prune(model, 0.5, score="wanda", sequences=[{"tokens": row[None]} for row in data])[0]
    spread = prune(model, 0.5, score="wanda", sequences=[(row[None],) for row in data])[0]
    assert equal_masks(zeros(plain), zeros(named)) and equal_masks(zeros(plain), zeros(spread))


def test_later_blocks_see_inputs_of_pruned_earlier_ones():
    model, data = Language(seed=3), tokens()
    one_pass = {}
    for name in LINEARS:  # the inputs of the dense model instead
        heard = []
        layer = model.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda _, x, heard=heard: heard.append(x[0].detach()))
        model.eval()(data[:, :-1])
        handle.remove()
        one_pass[name] = layer.weight.detach().abs() * heard[0].flatten(0, 1).square().sum(0).sqrt()
    right = prune(model, 0.7, score="wanda", sequences=data, loss_fn=next_token_loss)[0]
    wrong = prune(model, 0.7, score=one_pass)[0]
    first, last = LINEARS[0], LINEARS[-1]
    assert torch.equal(zeros(right)[first], zeros(wrong)[first])
    assert not torch.equal(zeros(right)[last], zeros(wrong)[last])


def test_gradients_are_taken_a_sequence_at_a_time():
    model, data = Language(), tokens()
    apart = prune(model, 0.5, score="gradient", sequences=data, loss_fn=next_token_loss)[0]
    together = prune(model, 0.5, score="gradient", sequences=[data], loss_fn=next_token_loss)[0]
    assert not equal_masks(zeros(apart), zeros(together))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_each_scope_counts_exactly(sparsity):
    model = Language()
    for layer in prune(model, sparsity, scope="row")[0].blocks:
        assert set((layer.expand.weight == 0).sum(1).tolist()) == {int(8 * sparsity)}
    by_layer = prune(model, sparsity)[0]
    assert {int(mask.sum()) for mask in zeros(by_layer).values()} == {int(96 * sparsity + 1e-9)}
    whole = prune(model, sparsity, scope="model")[0]
    assert sum(int(mask.sum()) for mask in zeros(whole).values()) == int(384 * sparsity + 1e-9)
    sizes = torch.cat([model.get_submodule(name).weight.abs().flatten() for name in LINEARS])
    gone = torch.cat([zeros(whole)[name].flatten() for name in LINEARS])
    assert sizes[~gone].min() >= max([*sizes[gone].tolist(), 0.0])


def test_a_share_that_floating_point_falls_short_of_is_still_met():
    model = nn.Sequential(nn.Linear(100, 1), nn.Linear(1, 1))
    assert int((prune(model, 0.29)[0][0].weight == 0).sum()) == 29


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (4, 4)])
def test_n_of_every_m_inputs_stay_and_they_are_the_highest(pattern):
    n, m = pattern
    model = nn.Sequential(nn.Linear(16, 5), nn.Linear(5, 2))
    weight = model[0].weight
    kept = prune(model, pattern=pattern)[0][0].weight
    for row, new in zip(weight, kept, strict=True):
        for start in range(0, 16, m):
            group = row[start : start + m].abs()
            highest = group.topk(n).indices
            expected = torch.zeros(m).scatter(0, highest, row[start : start + m][highest])
            assert torch.equal(new[start : start + m], expected)


def test_of_equal_weights_the_earlier_go():
    model = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 1))
    nn.init.ones_(model[0].weight)
    assert prune(model, 0.5, scope="row")[0][0].weight.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert prune(model, 0.5)[0][0].weight.tolist() == [[0] * 6, [1] * 6]


def test_given_scores_decide_and_convolutions_are_pruned_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    weight = model[0].weight.detach()
    smallest = prune(model, 0.5)[0][0].weight
    threshold = weight.abs().flatten().sort().values[27]
    assert torch.equal(smallest == 0, weight.abs() < threshold)
    largest = prune(model, 0.5, score={"0": -weight.abs()}, scope="layer")[0][0].weight
    assert torch.equal(largest != 0, smallest == 0)
    video = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    pruned, report = prune(video, 0.25)
    assert list(report.layers) == ["0"] and int((pruned[0].weight == 0).sum()) == 4


def test_the_report_counts_zeros_bytes_and_errors():
    model = Language()
    pruned, report = prune(model, 0.75)
    assert list(report.layers) == LINEARS
    total = sum(p.numel() * 4 for p in model.parameters())
    # 24 of 96 values stay, of four bytes each, and 96 bits say where
    saved = 96 * 4 - (24 * 4 + 12)
    assert (report.bytes_before, report.bytes_after) == (total, total - 4 * saved)
    one = report.layers["blocks.1.contract"]
    before, after = model.blocks[1].contract.weight, pruned.blocks[1].contract.weight
    assert one.error == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-5)
    assert (one.bytes_before, one.bytes_after) == (96 * 4 + 8 * 4, 96 * 4 + 8 * 4 - saved)
    assert one.what == "75.0% of 96 weights zero"
    assert str(report).splitlines()[0] == f"4 layers, {total:,} -> {total - 4 * saved:,} bytes"
    assert prune(model, 0.0)[1].bytes_after == total


def test_the_given_model_is_untouched_and_the_copy_keeps_its_flags():
    model = Language()
    model.blocks[0].expand.weight.requires_grad_(False)
    model.blocks[1].eval()
    next_token_loss(model, tokens()).backward()
    before, random = snapshot(model), torch.get_rng_state()
    pruned, _ = prune(model, 0.5, score="gblm", sequences=tokens(), loss_fn=next_token_loss)
    assert same(model, before) and torch.equal(torch.get_rng_state(), random)
    assert [p.requires_grad for p in pruned.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [m.training for m in pruned.modules()] == [m.training for m in model.modules()]
    assert not any(module._forward_pre_hooks for module in pruned.modules())


def test_what_is_inside_a_compiled_model_is_pruned():
    pruned, _ = prune(torch.compile(mlp()), 0.5)
    assert type(pruned) is nn.Sequential and int((pruned[0].weight == 0).sum()) == 12


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_understood_is_named_and_left_alone(case):
    model, layers, message = REFUSED[case]
    before = snapshot(model) if case not in ("meta", "lazy") else None
    with pytest.raises(ValueError, match=message):
        prune(model, 0.5, score="wanda", layers=layers, sequences=torch.randn(3, 4))
    assert before is None or case == "not finite" or same(model, before)


def unused():
    model = Language()
    model.extra = nn.Linear(8, 8)
    return model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"score": "wand"}, r"score must be one of .*got 'wand' \(did you mean wanda"),
        ({"score": "gblm", "loss_fn": None}, "loss_fn must be given for score 'gblm', got None"),
        ({"score": "wanda", "sequences": []}, "sequences must hold at least one batch"),
        ({"score": "wanda", "sequences": 3}, "sequences must be an iterable of batches, got int"),
        ({"alpha": -1.0}, r"alpha must be in \[0, inf\), got -1.0"),
        ({"scope": "column"}, "scope must be one of layer, model, row"),
        ({"aggregate": "l3"}, "aggregate must be one of l1, l2"),
        ({"pattern": (3, 2)}, r"pattern must be two integers \(n, m\) with 1 <= n <= m, got \(3, 2\)"),
        ({"pattern": (3, 5)}, r"layer 'blocks.0.expand' \(Linear\) must be with inputs in groups of 5"),
        (
            {"score": {"head": torch.zeros(3, 3)}},
            r"score of 'head' must be a tensor \(7, 8\) .* got \(3, 3\)",
        ),
        ({"score": "gblm", "loss_fn": lambda m, x: m(x)}, "loss_fn must return one finite number"),
        ({"score": "gblm", "loss_fn": lambda m, x: torch.tensor(1.0)}, "must return a loss that depends"),
        ({"score": "gblm", "layers": ["extra"]}, r"layer 'extra' \(Linear\) must be reached by the gradient"),
        ({"sparsity": "half"}, r"sparsity must be a number in \[0, 1\), got 'half'"),
        (
            {"score": "wanda", "sequences": torch.randn(2, 3), "loss_fn": None},
            "sequences must be what Language runs on, or be read by a loss_fn, got RuntimeError",
        ),
        ({"score": "wanda", "layers": ["extra"]}, r"layer 'extra' \(Linear\) must be run by the model"),
    ],
)
def test_bad_arguments_are_named(given, message):
    model = unused()
    before = snapshot(model)
    arguments = {"sparsity": 0.5, "sequences": tokens(), "loss_fn": next_token_loss, **given}
    with pytest.raises(ValueError, match=message):
        prune(model, **arguments)
    assert same(model, before)


class Padded(nn.Module):
    """Tokens of which 0 is padding, through torch's own encoder, whose fused form hides its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(7, 8)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)

    def forward(self, tokens):
        return self.blocks(self.tokens(tokens), src_key_padding_mask=tokens == 0)


def test_inputs_behind_a_padding_mask_are_those_of_every_position():
    model, batch = Padded(), tokens()
    batch[:, 4:] = 0
    names = [f"blocks.layers.{i}.linear{j}" for i in range(2) for j in (1, 2)]
    pruned, _ = prune(model, 0.5, score="wanda", sequences=batch, layers=names)
    heard = []
    first = model.eval().blocks.layers[0].linear1
    first.register_forward_pre_hook(lambda layer, given: heard.append(given[0].detach()))
    for sequence in batch.split(1):
        model(sequence)  # with gradients, torch runs the layers one by one
    norms = torch.cat(heard).flatten(0, 1).square().sum(0).sqrt()
    lowest = (first.weight.abs() * norms).argsort(dim=1, stable=True)[:, :4]
    torch.testing.assert_close(
        pruned.get_submodule(names[0]).weight, first.weight.scatter(1, lowest, 0), rtol=0, atol=0
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_numbers_may_be_written_as_others_write_them():
    given, plain = (prune(mlp(), share)[0] for share in ("0.5", 0.5))
    assert same(given, snapshot(plain))


def test_under_autocast_later_blocks_see_pruned_earlier_ones_too():
    model = Language()
    with torch.autocast("cpu", torch.bfloat16):
        pruned, _ = prune(model, 0.5, score="wanda", sequences=tokens())
        first = {name: pruned.get_submodule(name).weight for name in LINEARS[:2]}
        half = copy.deepcopy(model)
        for name, weight in first.items():
            half.get_submodule(name).weight.data.copy_(weight)
        torch.clear_autocast_cache()
        # In a copy whose first block is pruned, the second is as if it were alone.
        second, _ = prune(half, 0.5, score="wanda", sequences=tokens(), layers=LINEARS[2:])
    for name in LINEARS[2:]:
        assert torch.equal(pruned.get_submodule(name).weight, second.get_submodule(name).weight)
