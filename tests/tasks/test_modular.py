"""Modular arithmetic against arithmetic on Python integers."""

import pytest
import torch

from thalweg.tasks import Split, modular_arithmetic

OPERATIONS = {
    "+": lambda a, b, p: (a + b) % p,
    "-": lambda a, b, p: (a - b) % p,
    "*": lambda a, b, p: a * b % p,
    "/": lambda a, b, p: next(c for c in range(p) if c * b % p == a),
}


def pairs(split: Split, encoding: str, p: int) -> list[tuple[int, int, int]]:
    """(a, b, target) of every example, training part first, decoded without the code under test."""
    triples = []
    for inputs, targets in (split.train, split.test):
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            if encoding == "tokens":
                a, op, b, equals = row
                assert (op, equals) == (p, p + 1)
            else:
                assert sum(row) == 2 and len(row) == 2 * p
                a, b = row.index(1.0), row.index(1.0, p) - p
            triples.append((a, b, target))
    return triples


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("encoding", ["onehot", "tokens"])
def test_every_pair_appears_once_with_its_answer(op, encoding):
    p = 13
    triples = pairs(modular_arithmetic(p, op, 0.3, encoding=encoding), encoding, p)
    expected = {(a, b) for a in range(p) for b in range(p) if op != "/" or b != 0}
    assert len(triples) == len(expected)
    assert {(a, b) for a, b, _ in triples} == expected
    assert all(target == OPERATIONS[op](a, b, p) for a, b, target in triples)


def test_sizes_and_types_of_the_published_setting():
    onehot, tokens = modular_arithmetic(), modular_arithmetic(encoding="tokens")
    assert len(onehot.train[1]) == 5107 and len(onehot.test[1]) == 113**2 - 5107
    assert onehot.train[0].shape == (5107, 226) and onehot.train[0].dtype == torch.float32
    assert tokens.train[0].shape == (5107, 4) and tokens.train[0].dtype == torch.int64
    assert onehot.classes == 113 and onehot.train[1].dtype == torch.int64


def test_seed_decides_the_split_whatever_the_encoding():
    onehot = pairs(modular_arithmetic(11, seed=3), "onehot", 11)
    assert onehot == pairs(modular_arithmetic(11, seed=3, encoding="tokens"), "tokens", 11)
    assert onehot != pairs(modular_arithmetic(11, seed=4), "onehot", 11)


def test_training_part_is_a_random_sample_of_operands():
    inputs, _ = modular_arithmetic(97, encoding="tokens").train
    for column in (0, 2):
        # The mean of 3763 of the 9409 pairs has standard deviation 28.0 / sqrt(3763) * sqrt(0.6) = 0.36.
        assert abs(inputs[:, column].double().mean().item() - 48) < 4 * 0.36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, r"p must be an integer >= 2, got 1"),
        ({"p": 12, "op": "/"}, r"p must be prime for op '/', got 12"),
        ({"op": "^"}, r"op must be one of .*; got '\^'"),
        ({"train_fraction": 1.0}, r"train_fraction must be in \(0, 1\), got 1.0"),
        ({"p": 3, "train_fraction": 0.1}, r"train_fraction must leave at least one of 9 pairs"),
        ({"encoding": "one-hot"}, r"encoding must be one of .* \(did you mean onehot"),
        ({"seed": -1}, r"seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        modular_arithmetic(**arguments)


def test_composite_moduli_are_fine_without_division():
    assert modular_arithmetic(12, "*").classes == 12
