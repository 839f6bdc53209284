"""Remedies as code fit the batch that a run logs: pairs, mappings, several inputs, reshaped ones."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import Finding, Remedy
from thalweg.watch.batch_form import form_of, logits_in
from thalweg.watch.remedies import penalised, renewed

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
CLASSES = (INPUTS[:, 0] > 0).long() + 2 * (INPUTS[:, 1] > 0).long()

Output = namedtuple("Output", ("logits", "loss"))


class Keywords(nn.Module):
    """What Hugging Face's classifiers look like from outside."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, values, mask=None, labels=None):
        logits = self.last(F.relu(self.first(values if mask is None else values * mask)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return Output(logits, loss)


class Sum(Keywords):
    def forward(self, one, other):
        return super().forward(one + other).logits


def plain():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def entropy(model, inputs, targets):
    return F.cross_entropy(model(inputs), targets)


IMAGE = INPUTS.reshape(64, 2, 4)
# Model, batch, loss of both, and what remedies are to write for the model's inputs.
LOOPS = {
    "object": (
        plain,
        SimpleNamespace(x=INPUTS, y=CLASSES),
        lambda m, b: entropy(m, b.x, b.y),
        "batch.x",
    ),
    "pair": (plain, (INPUTS, CLASSES), lambda m, b: entropy(m, b[0], b[1]), "batch[0]"),
    "model's own loss": (
        Keywords,
        {"values": INPUTS, "mask": torch.ones(64, 8), "labels": CLASSES},
        lambda m, b: m(**b).loss,
        "{name: batch[name] for name in ('values', 'mask')}",
    ),
    "mapping": (plain, {"x": INPUTS, "y": CLASSES}, lambda m, b: entropy(m, b["x"], b["y"]), "batch['x']"),
    "other names": (
        plain,
        {"image": INPUTS, "kind": CLASSES},
        lambda m, b: entropy(m, b["image"], b["kind"]),
        "batch['image']",
    ),
    "flattened": (
        plain,
        {"x": IMAGE, "y": CLASSES},
        lambda m, b: entropy(m, b["x"].flatten(1), b["y"]),
        "batch['x'].flatten(1)",
    ),
    "flattened pair": (
        plain,
        (IMAGE, CLASSES),
        lambda m, b: entropy(m, b[0].flatten(1), b[1]),
        "batch[0].flatten(1)",
    ),
    "two inputs": (
        Sum,
        (INPUTS, -INPUTS / 2, CLASSES),
        lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]),
        "(batch[0], batch[1])",
    ),
    "a pair of inputs": (
        Sum,
        ((INPUTS, -INPUTS / 2), CLASSES),
        lambda m, b: F.cross_entropy(m(*b[0]), b[1]),
        "batch[0]",
    ),
    "targets first": (plain, (CLASSES, INPUTS), lambda m, b: entropy(m, b[1], b[0]), "batch[1]"),
}


EVALUATE = (
    "model.eval()\nwith torch.no_grad():\n    outputs = model(batch[0])  # your evaluation\nmodel.train()"
)
EACH = (
    "def each(model, batch):\n"
    "    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction='none')"
)


def fitted(loop, *codes):
    """The codes as a finding of this loop's run shows them, and the loop's model, optimizer and batch."""
    make, batch, loss_fn, _ = LOOPS[loop]
    torch.manual_seed(0)
    model = make()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with thalweg.watch(model, opt, loss_fn=loss_fn, store=None) as run:
        for _ in range(3):
            loss = loss_fn(model, batch)
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
            opt.zero_grad()
        remedies = tuple(Remedy("", code, "spam") for code in codes)
        run.recorder.report(Finding("of remedies", 3, "", {}, remedies=remedies))
        (found,) = [one for one in run.findings if one.name == "of remedies"]
    return [one.code for one in found.remedies], {"model": model, "opt": opt, "batch": batch, "torch": torch}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_remedy_evaluates_and_compares_is_what_the_loop_does(loop):
    codes, names = fitted(loop, EVALUATE, penalised("0.0 * logits.sum()"), EACH)
    for code in codes:
        exec(code, names)
    wanted = LOOPS[loop][2](names["model"], names["batch"])
    assert torch.equal(names["loss_fn"](names["model"], names["batch"]), wanted)
    assert torch.allclose(names["each"](names["model"], names["batch"]).mean(), wanted)
    outputs = names["outputs"]
    logits = getattr(outputs, "logits", outputs)
    assert logits.shape == (64, 4)


@pytest.mark.parametrize("loop", LOOPS)
def test_dormant_units_of_any_loop_are_renewed(loop):
    (code,), names = fitted(loop, renewed().code)
    model, opt, (_, batch, loss_fn, _) = names["model"], names["opt"], LOOPS[loop]
    first = model[0] if isinstance(model, nn.Sequential) else model.first
    with torch.no_grad():
        first.weight[3], first.bias[3] = 0.0, -1.0
    exec(code, names)
    loss_fn(model, batch).backward()
    opt.step()
    assert first.weight[3].abs().sum() > 0.1


@pytest.mark.parametrize("loop", LOOPS)
def test_remedies_name_what_the_loop_has(loop):
    (code,), _ = fitted(loop, EVALUATE)
    stars = {"model's own loss": "**", "two inputs": "*", "a pair of inputs": "*"}.get(loop, "")
    assert f"outputs = model({stars}{LOOPS[loop][3]})  #" in code


def test_statistics_are_measured_on_what_the_model_takes():
    (code,), names = fitted("flattened", "torch.optim.swa_utils.update_bn(loader, model)")
    model, (_, batch, _, _) = nn.Sequential(nn.BatchNorm1d(8)), LOOPS["flattened"]
    exec(code, {**names, "model": model, "loader": [batch]})
    assert torch.allclose(model[0].running_mean, INPUTS.mean(0), atol=1e-6)


def test_a_pair_is_taken_apart_as_before():
    codes = EVALUATE, penalised("0.0 * logits.sum()"), EACH, renewed().code
    assert fitted("pair", *codes)[0] == list(codes)


def test_labels_of_a_causal_language_model_are_moved_beside_their_logits():
    tokens = torch.arange(12).reshape(2, 6)
    keywords = {"input_ids": tokens, "labels": tokens.clone()}
    # A trainer of transformers adds a number for the loss.
    given = {**keywords, "num_items_in_batch": torch.tensor(12)}
    form = form_of(keywords, nn.Identity(), (), given, logits=".logits", late=True)
    names = {"batch": keywords, "torch": torch}
    assert eval(form.inputs, names).keys() == {"input_ids"}
    assert eval(form.inputs, names)["input_ids"] is tokens
    assert eval(form.targets, names).tolist() == [[1, 2, 3, 4, 5, -100], [7, 8, 9, 10, 11, -100]]


def test_where_inputs_are_not_in_the_batch_code_stays_as_it_is():
    batch = {"text": ["a"] * 64, "y": CLASSES}
    assert form_of(batch, plain(), (INPUTS,), {}, logits="", late=False) is None
    turned = {"x": INPUTS.reshape(8, 8, 8), "y": CLASSES}
    assert form_of(turned, plain(), (turned["x"].transpose(0, 2),), {}, logits="", late=False) is None


def test_logits_are_found_in_what_a_model_gives():
    logits = torch.zeros(2, 3)
    outputs = logits, SimpleNamespace(logits=logits), {"logits": logits}, (logits, 1)
    assert [logits_in(one) for one in outputs] == ["", ".logits", "['logits']", "[0]"]
    assert all(eval(f"o{logits_in(one)}", {"o": one}) is logits for one in outputs)
