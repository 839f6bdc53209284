"""Batches that are mappings, and loss functions that are not what a loss function should be."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import ProbeDisabled, RunStore
from thalweg.watch.labels import NamedLabels

GENEROUS = 1e9
READ = {"log Z", "softmax collapse", "opposing signals", "strongest features", "neural collapse"}


class Named(nn.Module):
    """What Hugging Face's classifiers look like from outside."""

    def __init__(self, own_loss):
        super().__init__()
        self.first, self.last, self.own_loss = nn.Linear(8, 32), nn.Linear(32, 2), own_loss

    def forward(self, values, labels=None):
        logits = self.last(F.relu(self.first(values)))
        if not self.own_loss:
            return logits
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))


def names_of(path):
    with RunStore(path) as store:
        return {name: store.readings(1, name) for name in store.names(1)}


@pytest.mark.parametrize("own_loss", [False, True], ids=["batch logged", "labels among the model's keywords"])
@pytest.mark.parametrize("key", ["labels", "targets", "y"])
def test_targets_are_found_in_a_mapping(own_loss, key, tmp_path):
    if own_loss and key != "labels":
        pytest.skip("the model's own name for them")
    torch.manual_seed(0)
    model = Named(own_loss)
    opt = torch.optim.Adam(model.parameters(), lr=0.05)
    x = torch.randn(32, 8)
    y = (x[:, 0] > 0).long()
    with thalweg.watch(model, opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(60):
            if own_loss:
                loss = model(values=x, labels=y).loss
                run.log(loss=loss)
            else:
                loss = F.cross_entropy(model(values=x), y)
                run.log(loss=loss, batch={"values": x, key: y})
            loss.backward()
            opt.step()
            opt.zero_grad()
    readings = names_of(tmp_path / "s")
    assert run.disabled == {} and readings.keys() >= READ
    assert readings["softmax collapse"][0].value == 0.0


@pytest.mark.parametrize("positional", [False, True], ids=["targets by name", "targets by position"])
def test_a_model_that_gives_logits_and_a_loss_is_read_at_its_logits(positional, tmp_path):
    class Both(Named):
        def forward(self, values, targets=None):
            logits = super().forward(values)
            return logits, None if targets is None else F.cross_entropy(logits, targets)

    torch.manual_seed(0)
    model, x = Both(own_loss=False), torch.randn(32, 8)
    opt = torch.optim.Adam(model.parameters(), lr=0.05)
    y = (x[:, 0] > 0).long()
    wanted = {}
    with thalweg.watch(model, opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for step in range(1, 61):
            logits, loss = model(x, y) if positional else model(values=x, targets=y)
            wanted[step] = logits.logsumexp(1).mean().item()
            run.log(loss=loss, batch=(x, y) if positional else None)
            loss.backward()
            opt.step()
            opt.zero_grad()
    readings = names_of(tmp_path / "s")
    assert run.disabled == {} and readings.keys() >= READ
    found = {one.step: one.value for one in readings["log Z"]}
    assert found == pytest.approx({step: wanted[step] for step in found}, rel=1e-5)


def test_labels_that_are_the_inputs_come_one_place_late_and_others_do_not():
    tokens = torch.randint(0, 9, (4, 6))
    logits = torch.zeros(4, 6, 9)
    same, own = NamedLabels(), NamedLabels()
    same.note({"input_ids": tokens, "labels": tokens.where(tokens > 2, -100)})
    found = same.beside(None, logits)
    assert torch.equal(found[:, :-1], tokens.where(tokens > 2, -100)[:, 1:])
    assert bool((found[:, -1] == -100).all())
    own.note({"input_ids": tokens, "labels": (tokens + 1) % 9})
    assert torch.equal(own.beside(None, logits), (tokens + 1) % 9)
    assert own.beside(None, torch.zeros(4, 5, 9)) is None


def test_labels_of_an_earlier_batch_do_not_stay():
    labels = NamedLabels()
    labels.note({"y": torch.zeros(3)})
    labels.forget()
    labels.note({"x": torch.zeros(3)})
    assert labels.beside(None, torch.zeros(3, 2)) is None


def test_what_cannot_be_read_of_sequences_is_said(small):
    model = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 9))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(0, 9, (8, 6))
    with thalweg.watch(model, opt, budget=GENEROUS, store=None) as run:
        for _ in range(25):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()
            run.log(loss=loss, batch=(tokens, tokens))
            opt.step()
            opt.zero_grad()
    words = run.left_out()
    for name in ("gradient starvation", "neural collapse"):
        assert "gives no readings" in words[name] and "not for sequences" in words[name]
    assert "no activation that could be heard" in words["dormant units"]
    assert "no activation that could be heard" in words["feature rank"]
    assert "log Z" not in words and "opposing signals" not in words


@pytest.mark.parametrize("kind", ["functions", "torch's encoder"])
def test_activations_that_are_functions_are_read(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "functions":
        model, x = Named(own_loss=False), torch.randn(64, 8)
    else:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(64, 3, 8)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    with thalweg.watch(model, opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(25):
            model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
    readings, words = names_of(tmp_path / "s"), run.left_out()
    for name in ("dormant units", "feature rank"):
        assert len(readings[name]) >= 2 and readings[name][0].layers and name not in words


def test_a_loss_function_that_was_never_given_a_batch_is_not_given_the_models_arguments(small):
    with (
        warnings.catch_warnings(),
        thalweg.watch(small.model, small.opt, loss_fn=small.loss_fn, budget=GENEROUS, store=None) as run,
    ):
        warnings.simplefilter("error", ProbeDisabled)
        for _ in range(30):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            run.log(loss=loss)
            small.opt.step()
            small.opt.zero_grad()
    assert run.disabled == {}
    assert run.left_out()["sharpness"] == "never ran: needs run.log(batch=...)"
    assert run.left_out()["gradient noise"] == "never ran: needs run.log(batch=...)"


UNFIT = {
    "of logits and targets": (F.cross_entropy, "it raised"),
    "no tensor": (lambda model, batch: 1.0, "it returned 1.0"),
    "one for each example": (
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "it returned a tensor of shape",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_loss_function_of_another_kind_is_explained_once(small, kind):
    loss_fn, words = UNFIT[kind]
    with (
        pytest.warns(ProbeDisabled) as caught,
        thalweg.watch(small.model, small.opt, loss_fn=loss_fn, budget=GENEROUS, store=None) as run,
    ):
        small.train(30, run)
    (message,) = [str(one.message) for one in caught if one.category is ProbeDisabled]
    assert "loss_fn(model, batch)" in message and words in message and run.step == 30
    assert set(run.disabled) == {"sharpness", "gradient noise"}
    assert [one.name for one in run.findings] == ["sensor switched off"]
