"""Batches that cannot be cut into examples: what needs none is read on all of them, the rest says why."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import ProbeDisabled
from thalweg.watch.moment import Moment
from thalweg.watch.store import RunStore
from thalweg.watch.whole_batches import why_whole

NODES, CLASSES = 300, 3


class Graph(nn.Module):
    """Two rounds of: a linear map of each node, and the mean over those that point to it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x, edges):
        return self.second(_gathered(F.relu(self.first(_gathered(x, edges))), edges))


def _gathered(x, edges):
    if edges.is_floating_point():
        return edges @ x
    ones = x.new_ones(edges.shape[1], 1)
    total = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
    return (x + total) / (1 + torch.zeros(len(x), 1).index_add(0, edges[1], ones))


def graph(form):
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES, (2, 900), generator=g)
    labels = torch.randint(CLASSES, (NODES,), generator=g)
    x = torch.randn(NODES, 5, generator=g) + F.one_hot(labels, 5)
    known = torch.rand(NODES, generator=g) < 0.3
    matrix = torch.eye(NODES).index_put((edges[1], edges[0]), torch.ones(900), accumulate=True)
    matrix = matrix / matrix.sum(1, keepdim=True)
    forms = {"edges": edges, "dense": matrix, "sparse": matrix.to_sparse()}
    return x, forms[form], labels, known


def masked_loss(model, batch):
    x, edges, labels, known = batch
    return F.cross_entropy(model(x, edges)[known], labels[known])


def read_on(model, opt, loss_fn, batch):
    """A run of 25 steps on one batch, with every sensor as often as it wants."""
    with thalweg.watch(model, opt, loss_fn=loss_fn, store=None, budget=1e9) as run:
        for _ in range(25):
            opt.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
    return run


def trained(tmp_path, batch, steps=45, lr=0.05):
    torch.manual_seed(0)
    model = Graph()
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    watching = thalweg.watch(model, opt, loss_fn=masked_loss, budget=1e9, store=tmp_path / "runs.sqlite")
    with watching as run:
        for _ in range(steps):
            opt.zero_grad()
            loss = masked_loss(model, batch)
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
    with RunStore(tmp_path / "runs.sqlite") as store:
        return run, {name: store.readings(run.id, name) for name in store.names(run.id)}


@pytest.mark.parametrize("form", ["edges", "dense", "sparse"])
def test_a_graph_is_read_whole_where_no_examples_are_needed(form, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProbeDisabled)
        run, read = trained(tmp_path, graph(form))
    assert run.disabled == {} and run.findings == []
    assert {
        "sharpness",
        "dormant units",
        "feature rank",
        "feature alignment",
        "backward signal",
    } <= read.keys()
    assert "cannot be cut into examples" in run.left_out()["gradient noise"]


def test_sharpness_of_a_graph_is_that_of_the_loss_of_all_its_known_nodes(tmp_path):
    batch = graph("edges")
    _, read = trained(tmp_path, batch, steps=65, lr=0.0)
    torch.manual_seed(0)
    model = Graph()
    names, sizes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(vector):
        pieces = vector.split([size.numel() for size in sizes])
        params = {n: piece.view(size) for n, piece, size in zip(names, pieces, sizes, strict=True)}
        x, edges, labels, known = batch
        output = torch.func.functional_call(model, params, (x, edges))
        return F.cross_entropy(output[known], labels[known])

    largest = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1].item()
    assert read["sharpness"][-1].value == pytest.approx(largest, rel=0.02)


def test_a_pair_of_a_graph_and_its_labels_says_why_examples_are_not_told_apart(tmp_path):
    x, edges, labels, _ = graph("edges")
    model = Graph()
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    with thalweg.watch(model, opt, store=None, budget=1e9) as run:
        for _ in range(5):
            opt.zero_grad()
            loss = F.cross_entropy(model(x, edges), labels)
            loss.backward()
            run.log(loss=loss, batch=((x, edges), labels))
            opt.step()
    assert run.disabled == {}
    for name in ("opposing signals", "gradient starvation", "neural collapse"):
        assert "2 x 900 whole numbers" in run.left_out()[name]


def test_a_state_that_is_carried_from_batch_to_batch_is_no_reason_to_switch_off():
    """Rows of a recurrent state are examples along its second dimension, which a part would not fit."""
    torch.manual_seed(0)
    cell, head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    class Carried(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = cell, head

        def forward(self, x, h, c):
            return self.head(self.cell(x, (h, c))[0][:, -1])

    model = Carried()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y, state = torch.randn(40, 6, 4), torch.randint(3, (40,)), torch.randn(1, 40, 8)
    batch = (x, y, state, state)

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0], batch[2], batch[3]), batch[1])

    run = read_on(model, opt, loss_fn, batch)
    assert run.disabled == {}
    assert "a part of it gave RuntimeError" in run.left_out()["gradient noise"]


@pytest.mark.parametrize(
    ("batch", "whole"),
    [
        ((torch.zeros(9, 4), torch.zeros(9, dtype=torch.int64)), False),
        ((torch.zeros(9, 4), torch.zeros(2, 30, dtype=torch.int64)), True),
        ((torch.zeros(9, 4), torch.zeros(5, dtype=torch.int64)), True),  # numbers of some nodes
        ((torch.zeros(9, 4, dtype=torch.int64), torch.arange(4)), False),  # positions of tokens
        ((torch.zeros(9, 4, dtype=torch.int64), torch.arange(4)[None]), False),
        ((torch.zeros(9, 4), torch.ones(3)), False),  # weights of classes
        ((torch.zeros(9, 9, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)), False),
        ((torch.zeros(9, 4), torch.eye(9).to_sparse()), True),
        ({"x": torch.zeros(9, 4), "more": [torch.tensor(3), torch.zeros(7, 2, dtype=torch.int32)]}, True),
        ("no tensor", False),
    ],
)
def test_whole_numbers_of_another_count_may_point_to_examples(batch, whole):
    at = Moment(1, {}, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), batch=batch)
    assert (why_whole(at) is not None) == whole


def test_a_loss_that_fails_on_any_batch_is_told_by_its_first_error():
    model = nn.Linear(4, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken(model, batch):
        raise RuntimeError(f"no loss of {len(batch)}")

    x = torch.randn(600, 4)
    with (
        pytest.warns(ProbeDisabled, match="no loss of"),
        thalweg.watch(model, opt, loss_fn=broken, store=None, budget=1e9) as run,
    ):
        for _ in range(3):
            opt.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            run.log(loss=loss, batch=x)
            opt.step()
    left = run.left_out()["sharpness"]
    assert "no loss of" in left and "no loss of 600" not in left


class Uncut(torch.Tensor):
    """A tensor that cannot be indexed."""

    def __getitem__(self, index):
        raise TypeError("no part of it can be had")


def test_what_cannot_be_taken_apart_does_not_stop_the_training():
    model = nn.Linear(4, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(9, 4).as_subclass(Uncut)

    def loss_fn(model, batch):
        return model(batch.as_subclass(torch.Tensor)).square().mean()

    run = read_on(model, opt, loss_fn, batch)
    assert run.step == 25 and "sharpness" not in run.disabled
