from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg import optim
from thalweg.continual import continual_backprop
from thalweg.credit import forward_gradient


def mlp(norm: bool = False, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    # A bias in front of batch norm has a gradient of rounding errors, which Adam makes large.
    first = [nn.Linear(4, 6, bias=not norm), *([nn.BatchNorm1d(6)] if norm else []), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 6), nn.GELU(), nn.Linear(6, 3)),
    ).double()


# Maker, normalisation, reader, and how many columns of the reader one unit feeds.
CHAINS = {
    "mlp": (mlp, (4,), [(0, None, 2, 1), (2, None, 4, 1)]),
    "batch norm": (lambda: mlp(norm=True), (4,), [(0, 1, 3, 1), (3, None, 5, 1)]),
    "no bias": (lambda: mlp(bias=False), (4,), [(0, None, 2, 1), (2, None, 4, 1)]),
    "convolutions": (convolutional, (2, 6, 6), [(0, 1, 4, 1), (4, None, 7, 4), (7, None, 9, 1)]),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "descent": lambda p: optim.Descent(p, optim.adam(), lr=0.01),
    "plain": lambda p: torch.optim.SGD(p, lr=0.05),
}


def ramp(weight: torch.Tensor) -> None:
    """Incoming weights that a test can foresee."""
    weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))


class Literal:
    """Continual backpropagation written out with loops, one unit and one number at a time."""

    def __init__(self, model, chain, optimizer, rate, maturity, decay, utility):
        self.model, self.chain, self.optimizer = model, chain, optimizer
        self.rate, self.maturity, self.decay, self.utility = rate, maturity, decay, utility
        sizes = [model[maker].weight.shape[0] for maker, *_ in chain]
        self.u, self.f, self.a = ([[0.0] * n for n in sizes] for _ in range(3))
        self.r = [0.0] * len(chain)

    def step(self, inputs: dict[int, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """``inputs`` are what each reader read, by its index."""
        chosen = [self.choose(layer, inputs[reader]) for layer, (_, _, reader, _) in enumerate(self.chain)]
        for layer, units in enumerate(chosen):
            for position, i in enumerate(units):
                self.replace(layer, i, position)
        return {str(self.chain[n][0]): tuple(units) for n, units in enumerate(chosen) if units}

    def outgoing(self, layer: int, i: int) -> list[tuple[int, ...]]:
        """Index of every weight that leaves unit i."""
        _, _, reader, columns = self.chain[layer]
        weight = self.model[reader].weight
        rest = [range(n) for n in weight.shape[2:]]
        positions = torch.cartesian_prod(*map(torch.tensor, rest)).reshape(-1, len(rest)) if rest else [()]
        return [
            (j, c, *map(int, position))
            for j in range(weight.shape[0])
            for c in range(i * columns, (i + 1) * columns)
            for position in positions
        ]

    def choose(self, layer: int, x: torch.Tensor) -> list[int]:
        maker, _, reader, columns = self.chain[layer]
        eta, candidates = self.decay, []
        for i in range(len(self.u[layer])):
            if x.dim() == 4:
                h = x[:, i].flatten().tolist()
            else:
                h = x[:, i * columns : (i + 1) * columns].flatten().tolist()
            self.a[layer][i] += 1
            correction = 1 - eta ** self.a[layer][i]
            self.f[layer][i] = eta * self.f[layer][i] + (1 - eta) * sum(h) / len(h)
            f_hat = self.f[layer][i] / correction
            weights = [abs(self.model[reader].weight[index].item()) for index in self.outgoing(layer, i)]
            wo = sum(weights) / len(weights)
            incoming = self.model[maker].weight[i].flatten().tolist()
            wi = sum(map(abs, incoming)) / len(incoming)
            size = sum(map(abs, h)) / len(h)
            varying = sum(abs(value - f_hat) for value in h) / len(h)
            y = {
                "contribution": size * wo,
                "zero_contribution": varying * wo,
                "adaptable_contribution": varying * wo / wi,
                "weight": wo,
                "adaptation": 1 / wi,
                "feature_by_input": varying / wi,
            }[self.utility]
            self.u[layer][i] = eta * self.u[layer][i] + (1 - eta) * y
            if self.a[layer][i] > self.maturity:
                candidates.append((self.u[layer][i] / correction, i))
        self.r[layer] += self.rate * len(candidates)
        count = int(self.r[layer])
        self.r[layer] -= count
        return [i for _, i in sorted(candidates)[:count]]

    @torch.no_grad()
    def replace(self, layer: int, i: int, position: int) -> None:
        maker, norm, reader, _ = self.chain[layer]
        made, read = self.model[maker], self.model[reader]
        fresh = torch.empty_like(made.weight)
        ramp(fresh)
        self.zero_states(made.weight, [(i,)])
        made.weight[i] = fresh[position]
        if made.bias is not None:
            made.bias[i] = 0
            self.zero_states(made.bias, [(i,)])
        if norm is not None:
            entries = self.model[norm]
            for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                getattr(entries, name)[i] = value
            self.zero_states(entries.weight, [(i,)])
            self.zero_states(entries.bias, [(i,)])
        f_hat = self.f[layer][i] / (1 - self.decay ** self.a[layer][i])
        for index in self.outgoing(layer, i):
            if read.bias is not None:
                read.bias[index[0]] += read.weight[index] * f_hat
            read.weight[index] = 0
        self.zero_states(read.weight, self.outgoing(layer, i))
        self.u[layer][i] = self.f[layer][i] = self.a[layer][i] = 0

    def zero_states(self, p: torch.Tensor, indices: list[tuple[int, ...]]) -> None:
        for value in self.optimizer.state[p].values():
            if isinstance(value, torch.Tensor) and value.dim():
                for index in indices:
                    value[index] = 0


def reading(model: nn.Sequential, chain, x: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    readers, inputs = {reader for _, _, reader, _ in chain}, {}
    for index, module in enumerate(model):
        if index in readers:
            inputs[index] = x.detach().clone()
        x = module(x)
    return x, inputs


def compare(kind, optimizer, utility, *, steps=12, rate=0.15, maturity=2, decay=0.8) -> int:
    build, shape, chain = CHAINS[kind]
    ours, theirs = build(), build()
    first, second = OPTIMIZERS[optimizer](ours.parameters()), OPTIMIZERS[optimizer](theirs.parameters())
    settings = {"rate": rate, "maturity": maturity, "decay": decay, "utility": utility}
    renewal = continual_backprop(ours, first, init=ramp, **settings)
    literal = Literal(theirs, chain, second, **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (7,), generator=generator)
        first.zero_grad()
        functional.cross_entropy(ours(x), y).backward()
        first.step()
        second.zero_grad()
        out, inputs = reading(theirs, chain, x)
        functional.cross_entropy(out, y).backward()
        second.step()
        assert renewal.step() == literal.step(inputs)
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            for name, value in first.state[p].items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, second.state[q][name], rtol=1e-9, atol=1e-12)
    return renewal.replaced


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_step_is_that_of_the_loops(kind, optimizer):
    assert compare(kind, optimizer, "contribution") >= 8


@pytest.mark.parametrize(
    "utility",
    ["zero_contribution", "adaptable_contribution", "weight", "adaptation", "feature_by_input"],
)
@pytest.mark.parametrize("kind", ["mlp", "convolutions"])
def test_every_utility_is_that_of_the_loops(kind, utility):
    assert compare(kind, "adam", utility) >= 8


def mean(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).mean()


def run(model, optimizer, renewal, steps: int, seed: int = 0, width: int = 4) -> list:
    generator = torch.Generator().manual_seed(seed)
    done = []
    for _ in range(steps):
        x = torch.randn(8, width, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        done.append(renewal.step())
    return done


def still(model: nn.Module) -> torch.optim.Optimizer:
    """Trains nothing, so that only renewals move the weights."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def test_fractions_add_up_to_the_closed_form_count():
    model = mlp()
    optimizer = still(model)
    # No unit is ever young again before the end, so 6 and 5 units are eligible in each of the steps 4 to 11.
    renewal = continual_backprop(model, optimizer, rate=0.02, maturity=3)
    done = run(model, optimizer, renewal, 11)
    # 0.12 a step passes 1 at the 9th eligible step, 0.1 only after the 10th.
    assert [step for step, units in enumerate(done, 1) if units] == []
    done = run(model, optimizer, renewal, 1)
    assert list(done[0]) == ["0"] and len(done[0]["0"]) == 1 and renewal.replaced == 1
    assert renewal.state_dict()["layers"]["0"]["owed"] == pytest.approx(9 * 0.12 - 1)


def test_no_unit_is_renewed_before_it_is_mature_and_none_at_rate_zero():
    model = mlp()
    optimizer = still(model)
    done = run(model, optimizer, continual_backprop(model, optimizer, rate=1, maturity=4), 10)
    everything = {"0": set(range(6)), "2": set(range(5))}
    found = [{name: set(units) for name, units in one.items()} for one in done]
    assert found == [everything if step in (5, 10) else {} for step in range(1, 11)]
    assert not any(run(model, optimizer, continual_backprop(model, optimizer, rate=0, maturity=0), 3))


def test_a_renewal_keeps_the_mean_of_what_the_next_layer_puts_out():
    model = mlp()
    optimizer = still(model)
    x = torch.randn(64, 4, dtype=torch.float64)
    renewal = continual_backprop(model, optimizer, rate=1, maturity=0, decay=0.0, layers=["0"])
    before = model[:3](x).detach()
    model(x)
    assert len(renewal.step()["0"]) == 6
    after = model[:3](x)
    torch.testing.assert_close(after, before.mean(0).expand(64, -1))


def test_a_constant_unit_can_be_renewed_without_changing_the_function():
    model = mlp()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2], model[2].weight[:, 2] = 0, 0.7, 1e-3
    x = torch.randn(64, 4, dtype=torch.float64)
    before = model(x).detach()
    renewal = continual_backprop(model, still(model), rate=0.2, maturity=0, layers=["0"])
    model(x)
    assert renewal.step() == {"0": (2,)}
    torch.testing.assert_close(model(x), before)
    assert bool((model[0].weight[2] != 0).all()) and model[2].weight[:, 2].tolist() == [0] * 5


@pytest.mark.parametrize(
    ("init", "bound"),
    [("default", 1 / 18), ("kaiming", 6 / 18), ("lecun", 3 / 18), ("xavier", 6 / (18 + 400 * 9))],
)
def test_incoming_weights_fill_the_interval_of_the_layer(init, bound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 400, 3), nn.ReLU(), nn.Conv2d(400, 1, 1))
    renewal = continual_backprop(model, still(model), rate=1, maturity=0, init=init)
    model(torch.randn(1, 2, 3, 3))
    assert len(renewal.step()["0"]) == 400
    weight, limit = model[0].weight.detach(), math.sqrt(bound)
    assert weight.abs().max().item() == pytest.approx(limit, rel=1e-2) and weight.abs().max() <= limit
    assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.03)
    assert abs(weight.mean().item()) < 4 * limit / (3 * weight.numel()) ** 0.5


def test_default_incoming_weights_are_distributed_as_the_layers_own():
    torch.manual_seed(0)
    layer = nn.Linear(16, 2000)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(2000, 1))
    own = layer.weight.detach().clone().flatten().sort().values
    renewal = continual_backprop(model, still(model), rate=1, maturity=0)
    model(torch.randn(2, 16))
    renewal.step()
    fresh = layer.weight.detach().flatten().sort().values
    assert not torch.equal(own, fresh)
    # Kolmogorov-Smirnov at equal sizes: largest distance of the two quantile functions, in widths.
    assert (own - fresh).abs().max() < 1.95 * (2 / own.numel()) ** 0.5 * 0.5


def test_random_utility_renews_units_evenly():
    model = mlp()
    optimizer = still(model)
    generator = torch.Generator().manual_seed(0)
    renewal = continual_backprop(
        model,
        optimizer,
        rate=0.17,
        maturity=0,
        utility="random",
        decay=0.0,
        layers=["0"],
        generator=generator,
    )
    counts = torch.zeros(6)
    for one in run(model, optimizer, renewal, 600):
        counts[list(one.get("0", ()))] += 1
    # Chi-square with 5 degrees of freedom: 20.5 is passed once in a thousand.
    assert counts.sum() == int(600 * 0.17 * 6) and ((counts - 102) ** 2 / 102).sum() < 20.5


def test_several_passes_count_as_one_batch_and_evaluation_does_not_count():
    x = torch.randn(12, 4, dtype=torch.float64)
    states = []
    for parts in ([x], x.split(4)):
        model = mlp()
        renewal = continual_backprop(model, still(model), utility="zero_contribution")
        for part in parts:
            model(part)
        if part is not x:
            model.eval()
            model(100 * x)
            model.train()
            with torch.no_grad():
                model(100 * x)
        renewal.step()
        states.append(renewal.state_dict()["layers"])
    for name in ("0", "2"):
        torch.testing.assert_close(states[0][name]["utility"], states[1][name]["utility"])
        torch.testing.assert_close(states[0][name]["activation"], states[1][name]["activation"])


def test_a_forward_gradient_counts_as_a_training_pass():
    x = torch.randn(12, 4, dtype=torch.float64)
    states = []
    for passes in (lambda model: model(x), lambda model: forward_gradient(model, x, mean, directions=3)):
        model = mlp()
        renewal = continual_backprop(model, still(model))
        passes(model)
        renewal.step()
        states.append(renewal.state_dict()["layers"]["2"]["utility"])
    torch.testing.assert_close(*states)


def test_positions_of_a_sequence_are_averaged_over():
    states = []
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    for batch in (x, x.reshape(18, 4)):
        model = mlp()
        renewal = continual_backprop(model, still(model))
        model(batch)
        renewal.step()
        states.append(renewal.state_dict()["layers"]["2"]["utility"])
    torch.testing.assert_close(*states)


def test_a_saved_run_goes_on_bit_for_bit():
    model = mlp(norm=True)
    optimizer = torch.optim.Adam(model.parameters())
    settings = {"rate": 0.1, "maturity": 2, "generator": torch.Generator().manual_seed(3)}
    renewal = continual_backprop(model, optimizer, **settings)
    run(model, optimizer, renewal, 7)
    saved = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "renewal": renewal}
    torch.save({name: part.state_dict() for name, part in parts.items()}, saved)
    done = run(model, optimizer, renewal, 9, seed=5)
    assert any(done)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    twin = mlp(norm=True)
    other = torch.optim.Adam(twin.parameters())
    again = continual_backprop(twin, other, **{**settings, "generator": torch.Generator()})
    for name, part in {"model": twin, "optimizer": other, "renewal": again}.items():
        part.load_state_dict(loaded[name])
    assert run(twin, other, again, 9, seed=5) == done
    assert again.replaced == renewal.replaced
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_foreign_state_is_refused_whole():
    model = mlp()
    optimizer = still(model)
    renewal = continual_backprop(model, optimizer)
    run(model, optimizer, renewal, 2)
    before = copy.deepcopy(renewal.state_dict())
    other = copy.deepcopy(before)
    other["layers"]["2"]["age"] = torch.zeros(9, dtype=torch.int64)
    other["layers"]["0"]["owed"] = 5.0
    with pytest.raises(ValueError, match=r"'age' of shape \(5,\) and 'owed' for '2', got shape \(9,\)"):
        renewal.load_state_dict(other)
    with pytest.raises(ValueError, match=r"of the layers \['0', '2'\], got \['0'\]"):
        renewal.load_state_dict({"layers": {"0": before["layers"]["0"]}, "replaced": 0})
    after = renewal.state_dict()["layers"]
    assert after["0"]["owed"] == before["layers"]["0"]["owed"]
    assert torch.equal(after["2"]["age"], before["layers"]["2"]["age"])


def test_close_takes_the_hooks_away():
    model = mlp()
    with continual_backprop(model, still(model)) as renewal:
        assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 2
    assert not any(module._forward_pre_hooks for module in model.modules())
    renewal.close()
    with pytest.raises(RuntimeError, match="after close"):
        renewal.step()


def test_a_step_without_a_training_pass_is_refused_and_moves_nothing():
    model = mlp()
    renewal = continual_backprop(model, still(model), layers=["2"])
    with pytest.raises(RuntimeError, match="module '4' saw none"):
        renewal.step()
    assert renewal.state_dict()["layers"]["2"]["age"].tolist() == [0] * 5


@pytest.mark.parametrize(
    ("state", "got"),
    [
        (torch.ones(3, 1), r"torch.float32 and \(3, 1\)"),
        (torch.ones(3, 5).byte(), r"torch.uint8 and \(3, 5\)"),
    ],
)
def test_a_state_that_has_no_entry_of_a_unit_is_refused_before_anything_is_written(state, got):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    renewal = continual_backprop(model, optimizer, rate=1, maturity=0)
    model(torch.randn(4, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    optimizer.state[model[4].weight]["codes"] = state
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"'codes' must be .* parameter's shape \(3, 5\) .* got {got}"):
        renewal.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_compiled_model_is_renewed_as_a_plain_one():
    done = []
    for compiled in (False, True):
        model = mlp()
        called = torch.compile(model, backend="eager") if compiled else model
        optimizer = torch.optim.Adam(model.parameters())
        done.append(run(called, optimizer, continual_backprop(called, optimizer, rate=0.1, maturity=1), 6))
    assert done[0] == done[1] and any(done[0])


def test_only_the_named_moments_are_reset():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    renewal = continual_backprop(model, optimizer, rate=1, maturity=0, moments=["exp_avg"])
    run(model, optimizer, renewal, 1)
    state = optimizer.state[model[0].weight]
    assert bool((state["exp_avg"] == 0).all()) and bool((state["exp_avg_sq"] > 0).any())


def test_half_precision_weights_keep_their_dtype_and_float32_means():
    model = mlp().to(torch.bfloat16)
    renewal = continual_backprop(model, still(model), rate=1, maturity=0)
    model(torch.randn(4, 4, dtype=torch.bfloat16))
    assert len(renewal.step()) == 2
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert renewal.state_dict()["layers"]["0"]["utility"].dtype == torch.float32


def test_a_renewed_network_goes_on_learning_where_units_have_died():
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = x.square().sum(1, keepdim=True)
    losses = {}
    for rate in (0.0, 0.01):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
        with torch.no_grad():
            model[0].bias[2:] = -100  # all but two units are silent for good
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        renewal = continual_backprop(model, optimizer, rate=rate, maturity=20, init="kaiming")
        for _ in range(600):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            renewal.step()
        losses[rate] = loss.item()
    assert losses[0.01] < 0.3 * losses[0.0]
