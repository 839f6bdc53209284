"""Ranks from spectra against a literal search for the threshold; factors against Eckart and Young."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edited_models import LINEARS, REFUSED, Language, mlp, next_token_loss, same, snapshot, tokens
from torch import nn

from thalweg.surgery import LowRankLinear, RankAllocation, allocate_ranks, factorize


def removed_below(spectra, k):
    """How many directions the card's rule drops from each matrix at threshold k."""
    count = {}
    for name, s in spectra.items():
        low, high = min(s), max(s)
        count[name] = sum((value - low) / (high - low) < k for value in s)
    return count


def spectra_of(model):
    return {name: np.linalg.svd(model.get_submodule(name).weight.detach().numpy())[1] for name in LINEARS}


@pytest.mark.parametrize("reduction", [0.25, 0.5, 0.75])
def test_the_threshold_is_what_a_bisection_finds(reduction):
    model = Language()
    spectra = spectra_of(model)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(removed_below(spectra, middle).values()) <= reduction * 32:
            low = middle
        else:
            high = middle
    expected = {name: 8 - n for name, n in removed_below(spectra, low).items()}
    found = allocate_ranks(model, reduction)
    assert found.ranks == expected
    assert found.threshold == pytest.approx(low, abs=1e-5)
    assert found.reduction == pytest.approx(reduction) and found.full == dict.fromkeys(LINEARS, 8)


def test_the_reduction_rises_with_the_threshold():
    # The least values of all four matrices are 0 when normalised, and go together.
    found = [allocate_ranks(Language(), r) for r in (0.0, 0.1, 0.3, 0.5, 0.7, 0.8)]
    assert [round(f.reduction * 32) for f in found] == [
        0,
        4,
        10,
        16,
        22,
        26,
    ]
    assert [f.threshold for f in found] == sorted(f.threshold for f in found)
    assert found[0].threshold == 0


def test_one_huge_direction_does_not_take_all_others_of_its_matrix():
    spectra = {"spiked": torch.tensor([1e6, 4, 3, 2, 1.0]), "even": torch.linspace(5, 1, 5)}
    assert allocate_ranks(spectra, 0.5).ranks == {"spiked": 1, "even": 4}
    assert allocate_ranks(spectra, 0.5, floor=3).ranks == {"spiked": 3, "even": 3}
    assert allocate_ranks(spectra, 0.9, floor=9).ranks == {"spiked": 5, "even": 5}


def test_flat_spectra_have_no_tail_and_zero_matrices_nothing_but_one():
    spectra = {"flat": torch.full((4,), 2.0), "zero": torch.zeros(4), "plain": torch.tensor([1.0, 4, 3, 2])}
    assert allocate_ranks(spectra, 0.1).ranks == {"flat": 4, "zero": 4, "plain": 4}
    assert allocate_ranks(spectra, 0.25).ranks == {"flat": 4, "zero": 1, "plain": 3}
    assert allocate_ranks(spectra, 0.5).ranks == {"flat": 4, "zero": 1, "plain": 1}


def test_uniform_ranks_drop_an_equal_share_of_each():
    spectra = {"a": torch.rand(10), "b": torch.rand(4)}
    assert allocate_ranks(spectra, 0.5, method="uniform") == RankAllocation(
        {"a": 5, "b": 2}, {"a": 10, "b": 4}, None
    )


@pytest.mark.parametrize("reduction", [0.3, 0.7])
def test_errors_are_those_of_eckart_and_young_and_merged_equals_factored(reduction):
    model = Language().double()
    factored, report = factorize(model, reduction, min_ratio=0.0)
    merged, merged_report = factorize(model, reduction, min_ratio=1.0, others="merged")
    ranks = allocate_ranks(model, reduction).ranks
    for name, spectrum in spectra_of(model).items():
        expected = np.sqrt((spectrum[ranks[name] :] ** 2).sum() / (spectrum**2).sum())
        assert report.layers[name].error == pytest.approx(expected, rel=1e-9)
        assert merged_report.layers[name].error == pytest.approx(expected, rel=1e-9)
        layer = factored.get_submodule(name)
        assert np.linalg.matrix_rank(layer.weight.detach().numpy(), tol=1e-8) == ranks[name]
        if ranks[name] < 8:
            assert isinstance(layer, LowRankLinear) and layer.rank == ranks[name]
            singular = torch.linalg.svdvals(layer.down), torch.linalg.svdvals(layer.up)
            root = torch.from_numpy(spectrum[: layer.rank]) ** 0.5
            assert all(torch.allclose(s, root) for s in singular)
    x = tokens()
    torch.testing.assert_close(factored.eval()(x), merged.eval()(x), rtol=0, atol=1e-10)


def test_full_rank_is_the_model_itself():
    model = Language()
    same_again, report = factorize(model, 0.0)
    assert same(same_again, snapshot(model))
    assert {edit.error for edit in report.layers.values()} == {0.0}
    assert report.bytes_after == report.bytes_before


def test_bytes_are_those_of_the_factors_and_only_gains_are_taken():
    model = Language()  # matrices of 8 x 12: factors of rank 4 take 80 numbers, of 5 a hundred
    ranks = dict(zip(LINEARS, (4, 5, 2, 8), strict=True))
    edited, report = factorize(model, ranks=ranks)
    saved = {name: edit.bytes_before - edit.bytes_after for name, edit in report.layers.items()}
    assert list(saved.values()) == [4 * (96 - 80), 0, 4 * (96 - 40), 0]
    assert report.bytes_after == sum(4 * p.numel() for p in edited.parameters())
    assert [type(edited.get_submodule(name)) for name in LINEARS] == [LowRankLinear, nn.Linear] * 2
    assert torch.equal(edited.blocks[0].contract.weight, model.blocks[0].contract.weight)
    assert report.layers[LINEARS[1]].error == 0
    always, report = factorize(model, ranks=ranks, min_ratio=0.0)
    assert report.layers[LINEARS[1]].bytes_after == 4 * (5 * 20 + 8)
    assert isinstance(always.blocks[0].contract, LowRankLinear)


def test_min_ratio_is_a_share_of_the_rank():
    ranks = dict(zip(LINEARS, (4, 3, 2, 8), strict=True))
    edited, _ = factorize(Language(), ranks=ranks, min_ratio=0.5)
    assert [type(edited.get_submodule(n)) is LowRankLinear for n in LINEARS] == [False, True, True, False]


def test_only_the_factors_are_tuned_when_the_rest_is_frozen():
    model = Language()
    edited, _ = factorize(model, ranks={"blocks.0.expand": 3}, freeze=True)
    next_token_loss(edited, tokens()).backward()
    tuned = {name for name, p in edited.named_parameters() if p.requires_grad}
    assert tuned == {f"blocks.0.expand.{part}" for part in ("down", "up")}
    assert {name for name, p in edited.named_parameters() if p.grad is not None} == tuned
    assert all(p.requires_grad for p in model.parameters())


def test_the_given_model_is_untouched_and_the_result_saves_loads_and_exports():
    model = Language().eval()
    before = snapshot(model)
    edited, _ = factorize(model, 0.7)
    other, _ = factorize(Language(seed=5), ranks=allocate_ranks(model, 0.7))
    assert same(model, before) and not any(m.training for m in edited.modules())
    other.eval().load_state_dict(edited.state_dict())
    x = tokens()
    torch.testing.assert_close(other(x), edited(x))
    torch.testing.assert_close(torch.export.export(edited, (x,)).module()(x), edited(x))


def test_biases_stay_and_may_be_missing():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 1)).bfloat16()
    edited, _ = factorize(model, ranks={"0": 2, "1": 2})
    assert edited[0].bias is None and torch.equal(edited[1].bias, model[1].bias)
    assert edited[0].up.dtype == torch.bfloat16 and edited(torch.ones(1, 8).bfloat16()).shape == (1, 1)


def test_wide_attention_blocks_of_torch_keep_working():
    # Its fast path reads the weights of linear1 and linear2 itself.
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 3, 8)
    names = [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    edited, _ = factorize(model, ranks=dict.fromkeys(names, 3))
    slow = edited(x)
    with torch.no_grad():
        torch.testing.assert_close(edited(x), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_understood_is_named_and_left_alone(case):
    model, layers, message = REFUSED[case]
    before = snapshot(model) if case not in ("meta", "lazy", "not finite") else None
    with pytest.raises(ValueError, match=message):
        factorize(model, layers=layers)
    assert before is None or same(model, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reduction": 1.0}, r"reduction must be in \[0, 1\), got 1.0"),
        ({"method": "even"}, "method must be one of uniform, welore; got 'even'"),
        ({"floor": 0}, "floor must be an integer >= 1, got 0"),
        ({"min_ratio": 2}, r"min_ratio must be in \[0, 1\], got 2"),
        ({"others": "gone"}, "others must be one of dense, merged"),
        ({"ranks": {"0": 0}}, "ranks of '0' must be an integer >= 1, got 0"),
        ({"ranks": {"0": 5}}, r"layer '0' \(Linear\) must be of at most rank 4, got 5"),
        ({"ranks": {"0": 2}, "layers": ["2"]}, "ranks must hold every layer to factorise, got none for '2'"),
    ],
)
def test_bad_arguments_are_named(given, message):
    model = mlp()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        factorize(model, **given)
    assert same(model, before)


@pytest.mark.parametrize(
    "spectra",
    [{}, {"a": torch.ones(2, 2)}, {"a": torch.tensor([1.0, -1.0])}, {"a": torch.tensor([torch.inf])}],
)
def test_what_is_no_spectrum_is_refused(spectra):
    with pytest.raises(ValueError, match="model_or_spectra must"):
        allocate_ranks(spectra)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"down and up must be .* got \(2, 3\) and \(4, 3\)"):
        LowRankLinear(torch.ones(2, 3), torch.ones(4, 3))
