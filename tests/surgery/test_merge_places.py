"""Models that read and write at places: experts behind a router, messages in a graph, masked tokens."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from architectures import shuffled
from torch import nn

from thalweg.surgery import align
from thalweg.surgery._axis_run import movable, run, trace
from thalweg.surgery._symmetry import symmetry


class Routed(nn.Module):
    """Two experts, each for the rows that are sent to it; they are put together in one of several ways."""

    def __init__(self, how: str = "index_add") -> None:
        super().__init__()
        self.how = how
        self.stem, self.router, self.head = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(2)
        )

    def forward(self, x):
        x = self.stem(x)
        chosen, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = torch.where(chosen == i)[0]
            if self.how == "index_add":
                out.index_add_(0, rows, expert(x[rows]))
            elif self.how == "places":
                out[rows] += expert(x[rows])
            else:
                out[chosen == i] = expert(x[chosen == i])
        return self.head(x + out)


class Graph(nn.Module):
    """Each node adds up what its neighbours send; ``mixed`` lets every unit take another neighbour."""

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.mixed = mixed
        self.sent, self.kept, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, edges):
        sent = self.sent(x).relu()
        source, target = (end[:, None].expand(-1, 6) for end in edges)
        if self.mixed:
            source = (source + torch.arange(6)) % len(x)
        got = torch.zeros_like(sent).scatter_add(0, target, sent.gather(0, source))
        most = torch.zeros_like(sent).scatter_reduce(0, target, sent.gather(0, source), "amax")
        return self.head(self.kept(x) + got + most)


class Filled(nn.Module):
    """Tokens that are masked get one learned vector, and are all that the head is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.blank = nn.Embedding(9, 6), nn.Parameter(torch.randn(6))
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 9)

    def forward(self, tokens):
        x, masked = self.tokens(tokens), tokens % 3 == 0
        x[masked] = self.blank
        return self.head((x + self.mix(x).relu())[masked])


def graph():
    return torch.randn(5, 4).double(), torch.tensor([[0, 1, 2, 3, 4, 4], [1, 0, 3, 2, 2, 0]])


def rows():
    return torch.randn(9, 4).double()


@pytest.mark.parametrize(
    ("make", "batch", "groups"),
    [
        *((lambda how=how: Routed(how), rows, 3) for how in ("index_add", "places", "mask")),
        (Graph, graph, 1),
        (lambda: Graph(mixed=True), graph, 0),
        (Filled, lambda: torch.arange(9).view(1, 9), 1),
    ],
    ids=("index_add", "places", "mask", "graph", "mixed graph", "filled"),
)
def test_axes_that_have_no_places_keep_their_freedom(make, batch, groups):
    torch.manual_seed(0)
    model, inputs = make().double().eval(), batch()
    found = symmetry(trace(model, inputs)[0])
    assert len(found.units) == groups, found.fixed
    moved = copy.deepcopy(model)
    with torch.no_grad():
        found.apply(movable(moved), shuffled(found))
    torch.testing.assert_close(run(moved, inputs), run(model, inputs), rtol=1e-9, atol=1e-11)


def test_activations_of_rows_that_a_router_sends_elsewhere_are_not_compared():
    torch.manual_seed(0)
    one, other = Routed(), Routed()
    with pytest.raises(
        ValueError, match=r"as many samples .* \(a router\?\): method='weights' needs no batch"
    ):
        align(one, other, torch.randn(40, 4), method="activations")
    assert align(one, other, torch.randn(40, 4))[1].error < 1e-5


def test_torchscript_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        part = torch.jit.script(model)
    for whole, name in ((part, "RecursiveScriptModule"), (nn.Sequential(nn.Linear(4, 4), part), "1")):
        with pytest.raises(ValueError, match=rf"modules in Python, .* got '{name}' of TorchScript"):
            align(whole, copy.deepcopy(whole), torch.randn(2, 4))
