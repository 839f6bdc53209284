"""A vanishing gradient dies out towards the first layers, lastingly; what only looks like it is none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import backward_signal
from thalweg.watch import Reading
from thalweg.watch.rules.vanishing_gradient import VanishingGradient


def told(profiles, optimizer="SGD"):
    """Findings on profiles of norms, first layer first, ten steps apart."""
    rule, found = VanishingGradient({"optimizer": optimizer, "lr": 0.1}), []
    for number, norms in enumerate(profiles):
        names = norms if isinstance(norms, dict) else {f"layer {i}": v for i, v in enumerate(norms)}
        first, *_, last = names.values()
        found += rule.see(Reading(1 + 10 * number, "backward signal", first / last, names))
    return found


def decaying(times, layers=9):
    return [times ** (layers - 1 - layer) for layer in range(layers)]


def test_three_readings_in_a_row_are_one_finding_with_its_numbers():
    (found,) = told([decaying(0.1)] * 5)
    assert (found.step, found.severity) == (1, "warning")
    assert found.evidence["ratio"] == pytest.approx(0.1**5 / 0.1)
    assert found.evidence["ratio"] < found.evidence["threshold"]
    assert found.layers == ("layer 0", "layer 1", "layer 2")
    for key in {*found.papers, *(remedy.paper for remedy in found.remedies)}:
        assert papers.find(key).key == key


@pytest.mark.parametrize(
    "profiles",
    [
        [decaying(0.1), decaying(0.1), decaying(0.6), decaying(0.1), decaying(0.1)],
        [decaying(0.6)] * 10,
        [[1e-9 * v for v in decaying(0.9)]] * 10,
        [[1e-6, 1.0, 1e-6, 1.0, 0.0, 1.0, 1e-6, 1.0, 1.0]] * 10,
        [[1e-4, 1e-4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]] * 10,
        [[1e-9, 1.0, 1.0]] * 10,
        [[1e-9, 1e-6, 1e-3]] * 10,
        [[1.2e-3, 1.1e-3, 1e-3, 1.0]] * 10,
        [[2e-6, 2e-5, 2e-5, 2e-5, 2e-5, 1.0]] * 10,
    ],
    ids=[
        "puts itself right",
        "mild",
        "small everywhere",
        "zero branches",
        "queries and keys",
        "shallow",
        "three layers",
        "a head that begins at zero",
        "a head that begins at zero, of six layers",
    ],
)
def test_what_only_looks_like_it_is_none(profiles):
    assert told(profiles) == []


def test_over_time_the_layer_is_named_once():
    steps = {f"cell[{i}]": 0.5 ** (29 - i) for i in range(30)} | {"head": 1.0}
    (found,) = told([steps] * 3)
    assert found.layers == ("cell",) and "steps of the sequence" in found.message


class Block(nn.Module):
    """x + B relu(A norm(x)), with B zero at first: nothing comes back into A."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(self.norm(x))))


def sound():
    torch.manual_seed(0)
    yield "residual", nn.Sequential(nn.Linear(64, 32), *[Block(32) for _ in range(6)], nn.Linear(32, 10))
    yield "he", tasks.MLP((64, *[64] * 12, 10), init="he", seed=0)
    yield "layer norm", tasks.MLP((64, *[64] * 12, 10), norm="layer", seed=0)
    learnt = tasks.MLP((64, 64, 64, 64, 10), seed=0)
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    opt = torch.optim.AdamW(learnt.parameters(), lr=3e-3)
    for _ in range(300):
        F.cross_entropy(learnt(x), y).backward()
        opt.step()
        opt.zero_grad()
    assert F.cross_entropy(learnt(x), y) < 1e-3
    yield "learnt by heart", learnt
    frozen = tasks.MLP((64, *[64] * 6, 10), seed=0, init="he")
    for p in frozen[0].parameters():
        p.requires_grad_(False)
    yield "frozen", frozen


@pytest.mark.parametrize(("name", "model"), list(sound()))
def test_sound_networks_have_none(name, model):
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    assert told([backward_signal(model, x).norms] * 5) == []


def test_orthogonal_weights_and_normalisation_mend_it_as_pasted():
    x, y = torch.randn(16, 64), torch.randint(0, 10, (16,))

    def sick():
        model = tasks.MLP((64, *[64] * 12, 10), activation="tanh", init="xavier", seed=0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.3)
        return model

    (found,) = told([backward_signal(sick(), x).norms] * 3)
    for remedy in found.remedies:
        names = {"model": sick(), "torch": torch}
        names["opt"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
        exec(remedy.code, names)
        assert told([backward_signal(names["model"], x).norms] * 3) == [], remedy.title
        before = F.cross_entropy(names["model"](x), y)
        before.backward()
        names["opt"].step()
        assert F.cross_entropy(names["model"](x), y) < before


class Sequence(nn.Module):
    """Eight numbers, one after the other, into a recurrent layer with weights that are far too small."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.last = kind(1, 32, batch_first=True), nn.Linear(32, 4)
        with torch.no_grad():
            self.recurrent.weight_hh_l0 *= 0.01

    def forward(self, x):
        return self.last(self.recurrent(x.unsqueeze(-1))[0][:, -1])


def test_a_recurrent_layer_begins_again_with_orthogonal_gates_in_the_loop_of_the_readme():
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    (found,) = told([backward_signal(Sequence(nn.RNN), x).norms] * 3)
    assert found.layers[0] == "recurrent"
    (remedy,) = found.remedies
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        model, gates = Sequence(kind), []
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        weight = model.recurrent.weight_hh_l0
        opt.register_step_pre_hook(lambda *_, w=weight, g=gates: g.extend(w.detach().clone().split(32)))
        paste(remedy.code, model, opt, batches(1))
        assert all(torch.allclose(gate @ gate.T, torch.eye(32), atol=1e-5) for gate in gates) and gates
        assert told([backward_signal(model, x).norms] * 3) == []
