from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg import optim
from thalweg.probe import plasticity
from thalweg.tasks import CNN, GPT, MLP


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def test_losses_equal_those_of_a_plain_loop_over_copies():
    model, x = MLP((4, 16, 3), seed=0), inputs(30, 4)
    found = plasticity(model, x, tasks=2, steps=15, rates=(1e-2, 5e-2), seed=3)
    source = torch.Generator().manual_seed(3)
    targets = [torch.randint(3, (30,), generator=source) for _ in range(2)]
    for rate, losses in found.losses.items():
        for wanted, loss in zip(targets, losses, strict=True):
            twin = copy.deepcopy(model)
            adam = torch.optim.Adam(twin.parameters(), lr=rate)
            for _ in range(15):
                adam.zero_grad()
                functional.cross_entropy(twin(x), wanted).backward()
                adam.step()
            assert functional.cross_entropy(twin(x), wanted).item() == pytest.approx(loss, rel=1e-5)
    means = {rate: sum(losses) / 2 for rate, losses in found.losses.items()}
    assert found.baseline == math.log(3) and not found.inherited
    assert found.score == pytest.approx(math.log(3) - min(means.values()))
    assert means[found.rate] == min(means.values())
    assert found.share == pytest.approx(found.score / math.log(3))
    start = [functional.cross_entropy(model(x), wanted).item() for wanted in targets]
    assert found.untrained == pytest.approx(sum(start) / 2)


def test_best_linear_fit_bounds_the_score_of_a_linear_model():
    """Newton's method in closed form: enough steps of a linear regression reach least squares."""
    model, x = nn.Linear(3, 2).double(), inputs(40, 3).double()
    goal = inputs(40, 2).double()
    found = plasticity(
        model,
        x,
        targets=lambda outputs, source: goal,
        loss_fn=lambda out, wanted: (out - wanted).square().mean(),
        baseline=goal.var(0, correction=0).mean().item(),
        tasks=1,
        steps=500,
        rates=(0.05,),
    )
    design = torch.cat([x, torch.ones(40, 1).double()], 1)
    residual = goal - design @ torch.linalg.lstsq(design, goal).solution
    explained = goal.var(0, correction=0).mean() - residual.square().mean()
    assert found.score == pytest.approx(explained.item(), rel=1e-4)


def test_dead_units_cost_plasticity_and_fresh_weights_compared_with_themselves_do_not():
    model, x = MLP((8, 32, 4), seed=0), inputs(64, 8)
    start = copy.deepcopy(model.state_dict())
    same = plasticity(model, x, tasks=2, steps=40, rates=(1e-2,), fresh=start)
    assert same.relative == 1.0 and same.fresh == same.score
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    dead = plasticity(model, x, tasks=2, steps=40, rates=(1e-2,), fresh=start)
    assert dead.fresh == same.fresh and dead.relative < 0.4
    fresh_model = MLP((8, 32, 4), seed=0)
    assert plasticity(model, x, tasks=2, steps=40, rates=(1e-2,), fresh=fresh_model) == dead


@pytest.mark.parametrize("make", [torch.optim.AdamW, optim.AdamW, optim.Lion])
def test_a_live_optimizer_hands_on_its_state_and_keeps_its_own(make):
    model, x = MLP((4, 16, 3), seed=0), inputs(30, 4)
    live = make(model.parameters(), lr=1e-2)
    for _ in range(5):
        live.zero_grad()
        functional.cross_entropy(model(x), torch.arange(30) % 3).backward()
        live.step()
    state, weights = copy.deepcopy(live.state_dict()), copy.deepcopy(model.state_dict())
    start = copy.deepcopy(MLP((4, 16, 3), seed=0).state_dict())
    found = plasticity(model, x, tasks=1, steps=10, optimizer=live, fresh=start)
    assert found.inherited and found.rate == pytest.approx(1e-2)
    twin = MLP((4, 16, 3))
    twin.load_state_dict(weights)
    other = make(twin.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(state))  # torch would share its tensors
    wanted = torch.randint(3, (30,), generator=torch.Generator().manual_seed(0))

    def train(net, optimizer):
        for _ in range(10):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), wanted).backward()
            optimizer.step()
        return functional.cross_entropy(net(x), wanted).item()

    assert train(twin, other) == pytest.approx(found.losses[found.rate][0], rel=1e-5)
    new = MLP((4, 16, 3), seed=0)
    assert found.baseline - found.fresh == pytest.approx(
        train(new, make(new.parameters(), lr=1e-2)), rel=1e-5
    )
    for p, q in zip(model.parameters(), weights.values(), strict=True):
        assert torch.equal(p, q)
    for index, slots in state["state"].items():
        for name, value in slots.items():
            assert torch.equal(
                torch.as_tensor(live.state_dict()["state"][index][name]), torch.as_tensor(value)
            )


def test_regression_onto_a_fresh_network_has_baseline_one_and_shuffled_labels_their_entropy():
    model, x = MLP((4, 32, 2), activation="tanh", seed=0), inputs(50, 4)
    network = plasticity(model, x, targets="network", tasks=2, steps=150, rates=(2e-2,))
    assert network.baseline == 1 and 0.8 < network.score < 1
    labels = torch.tensor([0] * 40 + [1] * 10)
    shuffled = plasticity(model, x, targets="shuffled", labels=labels, tasks=1, steps=1, rates=(1e-9,))
    assert shuffled.baseline == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.tensor([0.8, 0.2]).log())
    exact = plasticity(model, x, targets="shuffled", labels=labels, tasks=2, steps=1, rates=(1e-12,))
    assert exact.score == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (CNN(classes=3, width=4, seed=0), inputs(32, 1, 8, 8)),
        (GPT(7, context=5, layers=1, heads=2, width=16, seed=0), torch.arange(40).view(8, 5) % 7),
    ],
    ids=["cnn", "gpt"],
)
def test_convolutional_nets_and_transformers_are_measured_and_left_as_they_were(model, x):
    model.train()
    handle = model.register_forward_hook(lambda *_: pytest.fail("a copy must not report to the live hooks"))
    before, randomness = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = plasticity(model, x, tasks=1, steps=30, rates=(1e-2,), batch_size=8)
    handle.remove()
    assert found.score > 0.05 and found.untrained > found.losses[1e-2][0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(p.grad is None for p in model.parameters()) and model.training
    assert plasticity(model, x, tasks=1, steps=30, rates=(1e-2,), batch_size=8) == found


def test_a_diverged_rate_is_infinite_and_never_the_best():
    found = plasticity(MLP((4, 16, 3), seed=0), inputs(30, 4), tasks=1, steps=10, rates=(1e-2, 1e30))
    assert found.losses[1e30] == (math.inf,) and found.rate == 1e-2


def test_spectral_normalisation_and_dropout_survive_copying():
    layer = nn.utils.spectral_norm(nn.Linear(4, 8))
    model = nn.Sequential(layer, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    u = layer.weight_u.clone()
    found = plasticity(model, inputs(20, 4), tasks=1, steps=5, rates=(1e-2,))
    assert math.isfinite(found.score) and torch.equal(layer.weight_u, u)


def test_an_optimizer_with_closures_goes_on_from_its_state():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), inputs(12, 4)
    live = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

    def closure():
        live.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    live.step(closure)
    before = model.weight.detach().clone()
    found = plasticity(model, x, optimizer=live, tasks=1, steps=5)
    assert found.inherited and found.losses[0.1][0] < found.untrained
    assert torch.equal(model.weight, before)


def frozen():
    return nn.Linear(4, 3).requires_grad_(False)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Linear(4, 3), {"tasks": 0}, "tasks must be an integer >= 1, got 0"),
        (nn.Linear(4, 3), {"rates": ()}, "rates must hold a learning rate, got none"),
        (nn.Linear(4, 3), {"rates": (0,)}, "rates must be in"),
        (nn.Linear(4, 3), {"targets": "label"}, r"did you mean labels"),
        (nn.Linear(4, 3), {"targets": "shuffled"}, r"labels must have shape \(6,\) to be shuffled, got None"),
        (nn.Linear(4, 1), {}, 'targets must be "network" for a model with a single output'),
        (nn.Linear(4, 3), {"loss_fn": functional.cross_entropy}, "loss_fn and baseline must both be given"),
        (frozen(), {}, "must have a parameter that requires a gradient, got none"),
        (nn.Flatten(0), {}, r"must return a tensor \(examples, ..., outputs\) or .logits, got \(24,\)"),
        (
            nn.Linear(4, 3),
            {"fresh": nn.Linear(5, 3)},
            "fresh must fit the model, got weights that do not",
        ),
        (Own(), {"targets": "network"}, "module '' \\(Own\\) has no reset_parameters"),
    ],
)
def test_plasticity_refuses(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        plasticity(model, inputs(6, 4), **arguments)


def test_a_copy_makes_its_normalised_weights_anew():
    """Weight normalisation by hooks: the weight is made of two others, with a graph."""
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(4, 16))
    hooked = nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 3))
    plain = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 16)), nn.ReLU(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        for mine, theirs in zip(
            plain.parameters(), [layer.bias, layer.weight_g, layer.weight_v], strict=False
        ):
            mine.copy_(theirs)
        plain[2].load_state_dict(hooked[2].state_dict())
    x = torch.randn(40, 4)
    hooked(x)
    found, expected = (plasticity(model, x, tasks=1, steps=20, rates=[0.01]) for model in (hooked, plain))
    assert found.score == pytest.approx(expected.score, rel=1e-4)
    assert found.score > found.baseline - found.untrained


def test_labels_that_do_not_count_stay_where_they_are_and_have_no_share_in_the_baseline():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(12, 4)
    labels = torch.tensor([0, 1, 1, 2, 0, 1, 1, 0, -100, -100, -100, -100])
    drawn = []

    def loss_fn(outputs, targets):
        drawn.append(targets.clone())
        return nn.functional.cross_entropy(outputs, targets)

    given = {"targets": "shuffled", "labels": labels, "tasks": 3, "steps": 1, "rates": (1e-9,)}
    found = plasticity(model, x, **given)
    shares = torch.tensor([3.0, 4.0, 1.0]) / 8
    assert found.baseline == pytest.approx(-(shares * shares.log()).sum().item())
    plasticity(model, x, **given, loss_fn=loss_fn, baseline=1.0)
    assert all(torch.equal(one[8:], labels[8:]) for one in drawn)
    assert all(torch.equal(one[:8].sort().values, labels[:8].sort().values) for one in drawn)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((6,), 3), r"labels must be in \[0, 3\).*got 3 to 3"),
        (torch.full((6,), -1), r"labels must be in \[0, 3\).*got -1 to -1"),
        (torch.full((6,), -100), "labels must hold one that counts"),
        (torch.zeros(6), "labels must be classes, integers, to be shuffled, got torch.float32"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        plasticity(nn.Linear(4, 3), torch.randn(6, 4), targets="shuffled", labels=labels, steps=1)
