"""Accuracy and loss of ``evaluate``, of models and targets of every form."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import RunStore

N = 200


class As(nn.Module):
    """A linear model whose output is wrapped."""

    def __init__(self, outputs, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.wrap = nn.Linear(6, outputs), wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


def readings(tmp_path, model, targets):
    """What was read of the model as it was at first, beside its own output, and what was left out."""
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.linear(x)
    pair = (x, targets(plain))
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    with thalweg.watch(model, opt, evaluate=(pair, pair), store=tmp_path / "store", budget=1e9) as run:
        for _ in range(15):
            out = model(x)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            del out
            opt.step()
    assert "accuracy" not in run.disabled
    with RunStore(run.store_path) as store:
        found = {}
        for name in ("train accuracy", "test accuracy", "test loss"):
            values = [one.value for one in store.readings(run.id, name)]
            found[name] = values[-1] if values else None
    return plain, pair[1], found, run.left_out()


def classes(logits):
    wanted = logits.argmax(-1)
    wanted[: N // 4] = (wanted[: N // 4] + 1) % logits.shape[-1]
    return wanted


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: SimpleNamespace(logits=logits, loss=None),
        lambda logits: {"logits": logits},
        lambda logits: (logits, logits.sum()),
    ],
    ids=["tensor", "attribute", "mapping", "tuple"],
)
def test_logits_are_found_in_what_a_model_gives(tmp_path, wrap):
    logits, wanted, found, _ = readings(tmp_path, As(5, wrap), classes)
    assert found["train accuracy"] == found["test accuracy"] == pytest.approx(0.75)
    assert found["test loss"] == pytest.approx(F.cross_entropy(logits, wanted).item(), rel=1e-5)


def test_ignored_targets_do_not_count(tmp_path):
    def half(logits):
        wanted = classes(logits)
        wanted[N // 2 :] = -100
        return wanted

    logits, wanted, found, _ = readings(tmp_path, As(5, nn.Identity()), half)
    assert found["test accuracy"] == pytest.approx(0.5)
    assert found["test loss"] == pytest.approx(F.cross_entropy(logits, wanted).item(), rel=1e-5)


def test_only_ignored_targets_are_said(tmp_path):
    *_, found, left = readings(tmp_path, As(5, nn.Identity()), lambda logits: torch.full((N,), -100))
    assert set(found.values()) == {None} and "only -100" in left["accuracy"]


@pytest.mark.parametrize("form", ["column", "flat", "whole", "sigmoid"])
def test_yes_or_no_by_one_logit(tmp_path, form):
    def answers(logits):
        wanted = (logits > 0).float()
        wanted[: N // 4] = 1 - wanted[: N // 4]
        wanted = wanted if form in ("column", "sigmoid") else wanted[:, 0]
        return wanted.long() if form == "whole" else wanted

    wrap = torch.sigmoid if form == "sigmoid" else nn.Identity()
    logits, wanted, found, _ = readings(tmp_path, As(1, wrap), answers)
    loss = F.binary_cross_entropy_with_logits(logits, wanted.reshape(logits.shape).float())
    assert found["test accuracy"] == pytest.approx(0.75)
    assert found["test loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_several_labels_an_example_are_judged_one_by_one(tmp_path):
    def answers(logits):
        wanted = (logits > 0).float()
        wanted[:, 0] = 1 - wanted[:, 0]
        return wanted

    logits, wanted, found, _ = readings(tmp_path, As(4, nn.Identity()), answers)
    assert found["test accuracy"] == pytest.approx(0.75)
    assert found["test loss"] == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, wanted).item(), rel=1e-5
    )


def test_shares_of_classes_are_judged_by_the_largest(tmp_path):
    def soft(logits):
        return 0.9 * F.one_hot(classes(logits), 5).float() + 0.02

    logits, wanted, found, _ = readings(tmp_path, As(5, nn.Identity()), soft)
    assert found["test accuracy"] == pytest.approx(0.75)
    assert found["test loss"] == pytest.approx(F.cross_entropy(logits, wanted).item(), rel=1e-5)


def test_numbers_have_a_loss_and_no_accuracy(tmp_path):
    _, _, found, left = readings(tmp_path, As(1, nn.Identity()), lambda out: out + 2)
    assert found == {"train accuracy": None, "test accuracy": None, "test loss": pytest.approx(4, rel=1e-5)}
    assert left["accuracy"] == "gives only the loss: targets are numbers, not classes"


def test_a_class_for_every_pixel(tmp_path):
    wrap = nn.Unflatten(1, (3, 2, 2))
    logits, wanted, found, _ = readings(tmp_path, As(12, wrap), lambda out: wrap(out).argmax(1))
    assert found["test accuracy"] == 1
    assert found["test loss"] == pytest.approx(F.cross_entropy(wrap(logits), wanted).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("wrap", "targets", "words"),
    [
        (nn.Identity(), lambda out: torch.zeros(N, 7), "fit no outputs of shape"),
        (nn.Identity(), lambda out: torch.full((N,), 9), "classes from 0 to 4"),
        (lambda out: "logits", classes, "must give logits"),
    ],
)
def test_what_cannot_be_judged_is_said_once_and_switches_nothing_off(tmp_path, wrap, targets, words):
    *_, found, left = readings(tmp_path, As(5, wrap), targets)
    assert set(found.values()) == {None}
    assert left["accuracy"].startswith("gives no readings: ") and words in left["accuracy"]
