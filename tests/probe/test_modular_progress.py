from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from thalweg.probe import fourier_basis, grokking_progress
from thalweg.tasks import GPT, MLP, modular_arithmetic

P = 11


class Table(nn.Module):
    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, rows):
        return self.logits[rows]


class Nested(nn.Module):
    """A tuple that begins with a tuple."""

    def forward(self, x):
        return ((torch.zeros(P * P, P), x), x)


def literal_waves(p: int, k: int, sign: int) -> list[torch.Tensor]:
    """Unit vectors over the pairs, from products of the waves of a and of b."""
    basis = fourier_basis(p)
    cosine, sine = basis[2 * k - 1], basis[2 * k]
    return [
        (torch.outer(cosine, cosine) - sign * torch.outer(sine, sine)).flatten() / math.sqrt(2),
        (torch.outer(sine, cosine) + sign * torch.outer(cosine, sine)).flatten() / math.sqrt(2),
    ]


def cross_entropy(logits: torch.Tensor, answers: list[int], rows: list[int]) -> float:
    losses = []
    for row in rows:
        values = logits[row].tolist()
        largest = max(values)
        log_z = largest + math.log(sum(math.exp(value - largest) for value in values))
        losses.append(log_z - values[answers[row]])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_are_those_of_the_written_out_projections(sign):
    source = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(P * P, P + 2, dtype=torch.float64, generator=source)
    train = torch.rand(P * P, generator=source) < 0.4
    keys = [1, 4]
    found = grokking_progress(
        Table(logits), torch.arange(P * P), P, train, frequencies=keys, operation="+" if sign > 0 else "-"
    )
    whole, logits = logits, logits[:, :P]
    answers = [(row // P + sign * (row % P)) % P for row in range(P * P)]
    learned, other = ([row for row in range(P * P) if bool(train[row]) is part] for part in (True, False))
    kept = torch.zeros_like(logits)
    single = {}
    for k in keys:
        part = sum(torch.outer(wave, wave @ logits) for wave in literal_waves(P, k, sign))
        single[k] = cross_entropy(logits - part, answers, learned)
        kept = kept + part
    assert found.train_loss == pytest.approx(cross_entropy(logits, answers, learned), rel=1e-12)
    assert found.test_loss == pytest.approx(cross_entropy(logits, answers, other), rel=1e-12)
    restricted = kept + (logits - kept).mean(0)
    assert found.restricted_loss == pytest.approx(cross_entropy(restricted, answers, other), rel=1e-12)
    assert found.excluded_loss == pytest.approx(cross_entropy(logits - kept, answers, learned), rel=1e-12)
    assert found.excluded_by_frequency == pytest.approx(single, rel=1e-12)
    variance = (logits - logits.mean(0)).square().sum()
    for k in range(1, P // 2 + 1):
        share = sum((wave @ logits).square().sum() for wave in literal_waves(P, k, sign)) / variance
        assert found.energy[k] == pytest.approx(share.item(), rel=1e-12)
    assert found.squared_weights == {"logits": pytest.approx(whole.square().sum().item())}


def circuit(p: int, keys: list[int], gain: float = 9.0) -> torch.Tensor:
    """Logits of the algorithm that the paper found: sum over k of cos(w_k (a + b - c))."""
    a, b, c = torch.meshgrid(*(torch.arange(p).double() for _ in range(3)), indexing="ij")
    return gain * sum((2 * torch.pi * k * (a + b - c) / p).cos() for k in keys).view(p * p, p)


@pytest.mark.parametrize(("p", "keys"), [(11, [1, 4]), (12, [2, 5, 6])])
def test_the_algorithm_is_wholly_in_its_key_frequencies(p, keys):
    train = torch.arange(p * p) % 3 == 0
    found = grokking_progress(Table(circuit(p, keys)), torch.arange(p * p), p, train, frequencies=keys)
    assert found.restricted_loss == pytest.approx(found.test_loss)
    assert found.excluded_loss == pytest.approx(math.log(p))
    assert all(loss > 2 * found.train_loss for loss in found.excluded_by_frequency.values())
    # The alternating wave has no sine, and twice the energy of another in its cosine.
    weight = {k: 2 if 2 * k == p else 1 for k in keys}
    for k, share in found.energy.items():
        assert share == pytest.approx(weight.get(k, 0) / sum(weight.values()), abs=1e-12)


def test_memorised_answers_are_not_in_the_key_frequencies():
    source = torch.Generator().manual_seed(0)
    train = torch.rand(P * P, generator=source) < 0.5
    answers = torch.arange(P * P) // P + torch.arange(P * P) % P
    logits = torch.where(train[:, None], 12.0 * nn.functional.one_hot(answers % P, P), 0.0)
    found = grokking_progress(Table(logits), torch.arange(P * P), P, train, frequencies=[2])
    assert found.train_loss < 1e-3
    assert found.excluded_loss < 0.01 and found.restricted_loss > 1.5
    assert found.test_loss == pytest.approx(math.log(P))


def rows_of(split) -> torch.Tensor:
    """a and b of the rows of a split with one-hot inputs."""
    onehot = torch.cat([split.train[0], split.test[0]])
    return torch.stack([onehot[:, :P].argmax(1), onehot[:, P:].argmax(1)], dim=1)


def test_rows_may_come_in_any_order():
    split = modular_arithmetic(P, "+", 0.4, seed=0)
    pairs, size = rows_of(split), len(split.train[1])
    model = MLP((2 * P, 16, P), seed=0)
    inputs = torch.cat([split.train[0], split.test[0]])
    found = grokking_progress(model, inputs, P, torch.arange(P * P) < size, frequencies=[1, 2], pairs=pairs)
    order = (pairs[:, 0] * P + pairs[:, 1]).argsort()
    sorted_train = (torch.arange(P * P) < size)[order]
    again = grokking_progress(model, inputs[order], P, sorted_train, frequencies=[1, 2])
    assert found.energy == pytest.approx(again.energy, rel=1e-5)
    for name in ("train_loss", "test_loss", "restricted_loss", "excluded_loss"):
        assert getattr(found, name) == pytest.approx(getattr(again, name), rel=1e-6)
    expected = nn.functional.cross_entropy(model(split.test[0]), split.test[1]).item()
    assert found.test_loss == pytest.approx(expected, rel=1e-5)


def test_a_transformer_is_read_at_its_last_position_and_left_as_it_was():
    split = modular_arithmetic(P, "+", 0.4, seed=0, encoding="tokens")
    tokens = torch.cat([split.train[0], split.test[0]])
    train = torch.arange(P * P) < len(split.train[1])
    every, last = (
        GPT(P + 2, 4, layers=1, heads=2, width=8, seed=0, readout=readout).train()
        for readout in ("all", "last")
    )
    given = {"frequencies": [3], "pairs": tokens[:, [0, 2]]}
    before = torch.get_rng_state()
    found, again = (grokking_progress(model, tokens, P, train, **given) for model in (every, last))
    assert found == again
    expected = nn.functional.cross_entropy(last(split.train[0])[:, :P], split.train[1]).item()
    assert found.train_loss == pytest.approx(expected, rel=1e-5)
    assert all(module.training for module in every.modules())
    assert all(p.grad is None for p in every.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_behind_ddp_is_measured(process_group):
    model = Table(circuit(P, [2]))
    arguments = (torch.arange(P * P), P, torch.arange(P * P) % 2 == 0)
    wrapped = grokking_progress(DistributedDataParallel(model), *arguments, frequencies=[2])
    assert wrapped == grokking_progress(model, *arguments, frequencies=[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frequencies": []}, r"frequencies must be at least one and different, got \[\]"),
        ({"frequencies": [1, 1]}, r"at least one and different, got \[1, 1\]"),
        ({"frequencies": [6]}, r"frequencies must be integers in \[1, 5\], got 6"),
        ({"frequencies": [1.0]}, r"frequencies must be integers in \[1, 5\], got 1\.0"),
        ({"operation": "*"}, r"operation must be one of \+, -; got '\*'"),
        ({"train": torch.ones(P * P).bool()}, "some of the pairs and not all, got 121"),
        ({"train": torch.arange(3)}, r"booleans of shape \(121,\), got torch\.int64, \(3,\)"),
        ({"model": Table(torch.zeros(P * P, 10))}, "model must return at least 11 logits, got 10"),
        ({"model": Table(torch.full((P * P, P), torch.nan))}, "finite logits, got NaN or infinity"),
        ({"model": Nested()}, "one tensor of logits, got tuple"),
        ({"inputs": torch.arange(P)}, r"logits must have shape \(121, units\).*got \(11, 11\)"),
    ],
)
def test_grokking_progress_refuses(change, message):
    arguments = {
        "model": Table(circuit(P, [2])),
        "inputs": torch.arange(P * P),
        "modulus": P,
        "train": torch.arange(P * P) % 2 == 0,
        "frequencies": [2],
        **change,
    }
    with pytest.raises(ValueError, match=message):
        grokking_progress(**arguments)


def test_training_rows_may_be_an_array():
    train = torch.arange(P * P) % 3 == 0
    table, inputs = Table(circuit(P, [2])), torch.arange(P * P)
    tensor, array = (
        grokking_progress(table, inputs, P, rows, frequencies=[2]) for rows in (train, train.numpy())
    )
    assert tensor == array


def test_answers_that_do_not_depend_on_the_pair_have_no_waves():
    bias = torch.randn(P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = bias.repeat(P * P, 1)
    train = torch.arange(P * P) % 2 == 0
    found = grokking_progress(Table(logits), torch.arange(P * P), P, train, frequencies=[1, 2])
    assert set(found.energy.values()) == {0.0}
    assert found.restricted_loss == pytest.approx(found.test_loss, rel=1e-12)


def test_frequencies_may_be_integers_of_any_kind():
    table, rows = Table(circuit(P, [2, 3])), torch.arange(P * P)
    kinds = ([2, 3], torch.tensor([2, 3]).numpy(), (2, torch.tensor(3).item()))
    found = [grokking_progress(table, rows, P, rows % 3 == 0, frequencies=keys) for keys in kinds]
    assert found[0] == found[1] == found[2]
