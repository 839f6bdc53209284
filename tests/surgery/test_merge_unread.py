"""What the traced run does not read: the copy also computes the same on longer inputs and other branches."""

import pytest
import torch
from torch import nn

from thalweg.surgery import align
from thalweg.tasks import GPT


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(9, 8), nn.Parameter(torch.randn(20, 8))
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.hidden(self.words(x) + self.places[: x.shape[1]]).relu())


class Branches(nn.Module):
    """Another layer if asked for, another head in training, a vector in the place of masked inputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 40), nn.Linear(40, 3)
        self.deep, self.aside, self.masked = (
            nn.Linear(16, 16),
            nn.Linear(16, 5),
            nn.Parameter(torch.randn(16)),
        )

    def forward(self, x, deep=False, mask=None):
        h = self.stem(x).relu()
        if mask is not None:
            h = torch.where(mask[:, None], self.masked, h)
        if deep:
            h = self.deep(h).relu()
        answer = self.head(self.hidden(h).relu())
        return (answer, self.aside(h)) if self.training else answer


class Cropped(nn.Module):
    """A relative bias cut to the length, and a matrix of which some columns are used."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 24) for _ in range(3))
        self.bias, self.nested = nn.Parameter(torch.randn(4, 12, 12)), nn.Parameter(torch.randn(24, 24))
        self.head = nn.Linear(24, 3)

    def forward(self, x, used=10):
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, 4, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) + self.bias[:, :length, :length]
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 24)
        return (mixed @ self.nested[:, :used]).relu() @ self.head.weight[:, :used].T


def pair(make):
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(make())
    return made


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [Positions, lambda: GPT(9, 20, width=32)])
def test_positions_beyond_the_example_keep_their_place(make):
    model, reference = pair(make)
    new, report = align(model, reference, torch.randint(9, (2, 5)))
    longer = torch.randint(9, (2, 15))
    assert report.permutations
    close(new(longer), model(longer))


def test_other_branches_and_training_compute_the_same():
    model, reference = pair(Branches)
    new, report = align(model, reference, torch.randn(2, 8))
    x, mask = torch.randn(6, 8), torch.arange(6) > 2
    assert list(report.permutations) == ["hidden"]
    close(new(x, deep=True, mask=mask), model(x, deep=True, mask=mask))
    for one, other in zip(new.train()(x), model.train()(x), strict=True):
        close(one, other)
    assert report.fixed["aside.weight[0]"] == "the inputs, which do not reach it"
    assert "'masked', which may carry the same units" in report.fixed["stem.weight[0]"]


def test_with_an_example_that_reads_all_they_are_permuted():
    model, reference = (one.train() for one in pair(Branches))
    inputs = {"x": torch.randn(2, 8), "deep": True, "mask": torch.tensor([True, False])}
    _, report = align(model, reference, inputs)
    assert "stem.weight[0]" in report.fixed  # the head of training is not read in evaluation
    model.aside = reference.aside = nn.Identity()
    new, report = align(model, reference, inputs)
    assert {"stem.weight[0]", "masked[0]", "deep.weight[1]"} <= {*sum(report.carried.values(), ())}
    close(new.eval()(**inputs), model.eval()(**inputs))


def test_what_is_cropped_stays_consistent():
    model, reference = pair(Cropped)
    new, report = align(model, reference, torch.randn(2, 5, 8))
    assert report.permutations
    for length, used in ((5, 10), (9, 20), (12, 24)):
        x = torch.randn(2, length, 8)
        close(new(x, used), model(x, used))


def test_a_model_with_nothing_else_is_refused_with_the_reason():
    model, reference = pair(Branches)
    model.hidden = reference.hidden = nn.Identity()
    model.head, reference.head = nn.Linear(16, 3), nn.Linear(16, 3)
    with pytest.raises(ValueError, match="the inputs, which do not reach it"):
        align(model, reference, torch.randn(2, 8))
