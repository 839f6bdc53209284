"""Weight matching against a transcription, brute force and planted permutations; what is refused."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, example, made, shuffled
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional

from thalweg.surgery import align
from thalweg.surgery._axis_run import movable, run, trace
from thalweg.surgery._symmetry import symmetry
from thalweg.tasks import GPT, MLP


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((p - q).detach().double().square().sum() for p, q in pairs)) ** 0.5


def planted(name, noise):
    """A model, and a copy with its units shuffled and its weights shaken."""
    reference = made(name, 0)
    model = copy.deepcopy(reference)
    found = symmetry(trace(model, example(name))[0])
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found.apply(movable(model), shuffled(found))
        for p in model.parameters():
            p += noise * p.std() * torch.randn(p.shape, generator=source) if p.numel() > 1 else 0
    return model, reference


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_new_model_computes_the_same_function_nearer_to_the_reference(name):
    model, reference, batch = made(name, 1), made(name, 0), example(name)
    before = state(model)
    new, report = align(model, reference, batch)
    expected = run(model.eval(), batch)
    scale = expected.abs().max().item()
    torch.testing.assert_close(run(new.eval(), batch), expected, rtol=0, atol=1e-5 * scale)
    assert same(state(model), before) and report.error < 1e-5
    assert report.distance == pytest.approx((distance(model, reference), distance(new, reference)))
    assert report.distance[1] < report.distance[0] and report.settled


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_planted_permutation_is_found(name):
    model, reference = planted(name, 0.0)
    new, report = align(model, reference, example(name), restarts=5)
    assert report.distance[1] < 1e-5 * report.distance[0]
    assert same(state(new), state(reference)) or report.distance[1] < 1e-6


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_a_planted_permutation_is_found_under_noise(noise):
    model, reference = planted("cnn", noise)
    shaken = align(model, reference, example("cnn"), restarts=3)[1]
    still = align(planted("cnn", 0.0)[0], reference, example("cnn"), restarts=3)[1]
    for name, order in still.permutations.items():
        assert torch.equal(order, shaken.permutations[name])


def transcribed(theirs, ours, orders):
    """Weight matching written out for a plain MLP in float64: groups in a given order until none moves."""
    a = [(p.double().numpy()) for p in ours]
    b = [(p.double().numpy()) for p in theirs]
    sizes = [weight.shape[0] for weight in b[:-2:2]]
    perms = [np.arange(n) for n in sizes]
    for order in orders:
        moved = False
        for k in order:
            value = np.zeros((sizes[k], sizes[k]))
            inner = b[2 * k] if k == 0 else b[2 * k][:, perms[k - 1]]
            value += a[2 * k] @ inner.T + np.outer(a[2 * k + 1], b[2 * k + 1])
            outer = b[2 * k + 2] if k + 1 == len(sizes) else b[2 * k + 2][perms[k + 1]]
            value += a[2 * k + 2].T @ outer
            new = linear_sum_assignment(value, maximize=True)[1]
            rows = np.arange(sizes[k])
            moved |= value[rows, new].sum() > value[rows, perms[k]].sum() + 1e-12
            perms[k] = new
        if not moved:
            return perms
    raise AssertionError("not settled")


def test_matching_is_the_published_ascent():
    model, reference = (MLP((6, 20, 24, 16, 4), seed=seed) for seed in (1, 0))
    source = torch.Generator().manual_seed(5)
    orders = (torch.randperm(3, generator=source).tolist() for _ in itertools.count())
    with torch.no_grad():
        expected = transcribed(list(model.parameters()), list(reference.parameters()), orders)
    report = align(model, reference, torch.randn(2, 6), seed=5)[1]
    found = list(report.permutations.values())
    assert [order.tolist() for order in found] == [order.tolist() for order in expected]


def test_one_hidden_layer_is_matched_as_well_as_can_be():
    model, reference = (MLP((3, 5, 2), seed=seed).double() for seed in (1, 0))
    new, _ = align(model, reference, torch.randn(2, 3).double())
    a, b = list(reference.parameters()), list(model.parameters())

    def gap(order):
        moved = (b[0][order], b[1][order], b[2][:, order], b[3])
        return sum(float((p - q).detach().square().sum()) for p, q in zip(a, moved, strict=True))

    least = min(gap(list(order)) for order in itertools.permutations(range(5)))
    assert distance(new, reference) ** 2 == pytest.approx(least, rel=1e-12)


class Heads(nn.Module):
    """Attention alone between fixed ends: two heads of two."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(3, 4) for _ in range(3))
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        split = [
            one(x).view(*x.shape[:2], 2, 2).transpose(1, 2) for one in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(*split)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_heads_are_matched_as_well_as_can_be():
    torch.manual_seed(2)
    model, reference = Heads().double(), Heads().double()
    batch = torch.randn(2, 4, 3).double()
    new, report = align(model, reference, batch)
    pairs = list(itertools.permutations(range(2)))
    ours, theirs = dict(reference.named_parameters()), dict(model.named_parameters())
    gaps = []
    # Order of heads, then of what is inside each new head: of queries and keys, and of values.
    for heads in pairs:
        for inside in itertools.product(pairs, repeat=4):
            rows = {
                kind: [2 * heads[g] + i for g in range(2) for i in inside[2 * at + g]]
                for at, kind in enumerate(("query", "value"))
            }
            rows["key"] = rows["query"]
            moved = dict(theirs)
            for kind, order in rows.items():
                moved[f"{kind}.weight"] = theirs[f"{kind}.weight"][order]
                moved[f"{kind}.bias"] = theirs[f"{kind}.bias"][order]
            moved["out.weight"] = theirs["out.weight"][:, rows["value"]]
            gaps.append(sum(float((ours[k] - moved[k]).detach().square().sum()) for k in ours))
    assert distance(new, reference) ** 2 == pytest.approx(min(gaps), rel=1e-12)
    assert distance(model, reference) ** 2 > 1.001 * min(gaps)
    assert [tuple(order.shape) for order in report.permutations.values()] == [(2,), (2, 2), (2, 2)]


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt", "grouped queries", "rnn", "a layer run twice"])
def test_no_sweep_ever_leads_away(name):
    model, reference, batch = made(name, 1), made(name, 0), example(name)
    gaps = [align(model, reference, batch, sweeps=sweeps)[1].distance[1] for sweeps in range(1, 5)]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(gaps))
    assert align(model, reference, batch, restarts=4)[1].distance[1] <= gaps[-1] + 1e-6


def test_permutations_are_reported_as_rows_of_the_old_model():
    model, reference = MLP((4, 7, 6, 5), seed=1), MLP((4, 7, 6, 5), seed=0)
    new, report = align(model, reference, torch.randn(2, 4))
    first, second = report.permutations["0"], report.permutations["2"]
    assert torch.equal(new[0].weight, model[0].weight[first])
    assert torch.equal(new[2].weight, model[2].weight[second][:, first])
    assert torch.equal(new[4].weight, model[4].weight[:, second])
    assert report.carried["0"] == ("0.weight[0]", "0.bias[0]", "2.weight[1]")
    assert report.fixed == {
        "0.weight[1]": "an input of the model",
        "4.weight[0]": "an output of the model",
        "4.bias[0]": "an output of the model",
    }
    assert report.layers["4.bias"][0] == report.layers["4.bias"][1]
    assert str(report).startswith("2 groups of units, distance to the reference")


class Cumulative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.third(self.second(torch.logcumsumexp(self.first(x), 1)).relu())


def test_what_is_not_understood_keeps_its_order_and_says_why():
    torch.manual_seed(0)
    report = align(Cumulative(), Cumulative(), torch.randn(2, 3))[1]
    assert list(report.permutations) == ["second"]
    assert report.fixed["first.weight[0]"] == report.fixed["second.weight[1]"] == "logcumsumexp"


def test_buffers_that_are_no_statistics_keep_their_order():
    class Shifted(MLP):
        def __init__(self, seed):
            super().__init__((3, 4, 2), seed=seed)
            self.register_buffer("shift", torch.arange(4.0))

        def forward(self, x):
            return self[2](self[0](x) + self.shift)

    with pytest.raises(ValueError, match=r"got Shifted without: 0\.weight\[0\] .* a constant read by add"):
        align(Shifted(0), Shifted(1), torch.randn(2, 3))


def test_hooks_of_the_model_stay_and_do_not_run():
    calls = []
    model, reference = MLP((3, 4, 2), seed=1), MLP((3, 4, 2), seed=0)
    model[0].register_forward_hook(lambda *_: calls.append(1))
    model.train()
    model[2].eval()
    new, _ = align(model, reference, torch.randn(2, 3))
    assert not calls and new.training and not new[2].training
    new(torch.randn(2, 3))
    assert calls


def test_named_and_positional_inputs_and_wrapped_models_are_understood():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.last = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return {"sum": self.last((self.left(x) + self.right(y)).relu()), "sizes": x.shape}

    torch.manual_seed(0)
    model, reference = Two(), Two()
    x, y = torch.randn(3, 3), torch.randn(3, 2)
    first, one = align(nn.DataParallel(model), reference, (x, y))
    second, two = align(model, reference, {"x": x, "y": y})
    # A loader gives lists.
    third, _ = align(model, reference, [x, y], method="activations", batches=[[x, y]])
    assert same(state(third), state(align(model, reference, (x, y), method="activations")[0]))
    assert same(state(first), state(second)) and list(one.permutations) == list(two.permutations) == ["left"]


class Answer:
    def __init__(self, hidden):
        self.hidden = hidden


class Slotted:
    __slots__ = ("hidden",)

    def __init__(self, hidden):
        self.hidden = hidden


def answering(kind, seed):
    class Answers(MLP):
        @torch.inference_mode()
        def forward(self, x):
            hidden = self[1](self[0](x))
            return kind(hidden), self[4](self[3](self[2](hidden)))

    return Answers((3, 4, 5, 2), seed=seed)


def test_whatever_an_answer_holds_keeps_its_order():
    for kind in (Answer, lambda hidden: [{"hidden": hidden}]):
        report = align(answering(kind, 1), answering(kind, 0), torch.randn(2, 3))[1]
        assert list(report.permutations) == ["2"]
        assert report.fixed["0.weight[0]"] == "an output of the model"
    with pytest.raises(ValueError, match=r"model must answer with tensors, .* got Slotted"):
        align(answering(Slotted, 1), answering(Slotted, 0), torch.randn(2, 3))


def test_what_leaves_torch_on_the_way_is_noticed_and_held():
    class Leaves(MLP):
        def forward(self, x):
            hidden = self[1](self[0](x))
            hidden = hidden + torch.from_numpy(hidden.detach().numpy() @ np.ones((6, 1), "f").cumsum(0))
            return self[4](self[3](self[2](hidden)))

    model, reference = Leaves((3, 6, 5, 2), seed=1), Leaves((3, 6, 5, 2), seed=0)
    new, report = align(model, reference, torch.randn(4, 3))
    assert list(report.permutations) == ["2"] and report.error < 1e-5
    assert report.fixed["0.weight[0]"] == "another order that changes the model's answers"
    assert torch.equal(new[0].weight, model[0].weight) and not torch.equal(new[2].weight, model[2].weight)


def test_answers_behind_a_mask_may_be_infinite():
    class Masked(MLP):
        def forward(self, x):
            return super().forward(x).masked_fill(x[:, :2] > 0, -torch.inf)

    model, reference = Masked((3, 6, 2), seed=1), Masked((3, 6, 2), seed=0)
    new, report = align(model, reference, torch.randn(20, 3))
    assert report.error < 1e-5 and not torch.equal(new[0].weight, model[0].weight)


def tied(model):
    model[2].weight = model[0].weight
    return model


def in_one_memory(model):
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


def square(seed=0):
    return MLP((4, 4, 4), seed=seed)


class Noisy(MLP):
    def forward(self, x):
        return super().forward(x) + functional.dropout(torch.ones(4), training=True)


@pytest.mark.parametrize(
    ("model", "reference", "options", "said"),
    [
        (
            lambda: square().to("meta"),
            square,
            {},
            r"model must hold its weights, got '0\.weight' on the meta",
        ),
        (square, lambda: square().to("meta"), {}, r"reference must hold its weights, got '0\.weight'"),
        (square, lambda: MLP((4, 5, 4)), {}, r"reference must have '0\.weight' of shape \(4, 4\).*\(5, 4\)"),
        (square, lambda: MLP((4, 4, 4, 4)), {}, r"model must have a weight '4\.\w+' of its own.*got none"),
        (lambda: MLP((4, 4, 4, 4)), square, {}, r"reference must have a weight '4\.weight' like model"),
        (lambda: tied(square()), square, {}, r"model must have a weight '2\.weight' of its own.* tied"),
        (lambda: tied(square()), lambda: tied(square()), {}, r"without: 0\.weight\[0\] keeps .* an input"),
        (lambda: in_one_memory(square()), square, {}, r"got '2\.weight' in the memory of '0\.weight'"),
        (lambda: "model", square, {}, "model must be a torch.nn.Module, got str"),
        (square, lambda: {}, {}, "reference must be a torch.nn.Module, got dict"),
        (lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 4), {}, r"got Linear without: weight\[0\] .* output"),
        (lambda: Noisy((4, 4, 4)), lambda: Noisy((4, 4, 4)), {}, "answer the same inputs alike"),
        (square, square, {"method": "gradients"}, "method must be one of .*; got 'gradients'"),
        (square, square, {"sweeps": 0}, "sweeps must be an integer >= 1, got 0"),
        (square, square, {"restarts": 0}, "restarts must be an integer >= 1"),
        (square, square, {"inputs": torch.randn(2, 7)}, "inputs must be what MLP runs on.*in module '0'"),
    ],
)
def test_what_cannot_be_aligned_is_refused_by_name_and_nothing_changes(model, reference, options, said):
    model, reference = model(), reference()
    before = state(model) if isinstance(model, nn.Module) else None
    batch = options.pop("inputs", torch.randn(2, 4))
    with pytest.raises(ValueError, match=said):
        align(model, reference, batch, **options)
    if before is not None and not any(p.is_meta for p in model.parameters()):
        assert same(state(model), before) and model.training


def test_weights_that_are_not_finite_are_refused():
    model = square(1)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"model must have finite real weights, got '2\.weight'"):
        align(model, square(), torch.randn(2, 4))


def test_tied_embeddings_stay_tied():
    model, reference = (GPT(9, 8, layers=1, heads=2, width=12, tied=True, seed=seed) for seed in (1, 0))
    new, report = align(model, reference, torch.randint(9, (2, 5)))
    assert new.head.weight is new.tokens.weight and "tokens.weight[1]" in report.carried["tokens"]


def read(model, batches):
    """What the layers of a model read."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda _, given: found.append(given[0].detach().clone()))
    training = model.training
    for batch in batches:
        run(model.eval(), batch)
    model.train(training)
    return found


@pytest.mark.parametrize("method", ["activations", "correlations"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_planted_permutation_is_found_in_activations(name, method):
    model, reference = planted(name, 0.0)
    before = state(reference), state(model)
    torch.manual_seed(5)
    batches = [ARCHITECTURES[name][1]() for _ in range(8)]
    new, report = align(model, reference, example(name), method=method, batches=batches)
    assert report.error < 1e-5
    # Units that never answer may change places among themselves.
    for found, wanted in zip(*(read(net, batches) for net in (new, reference)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert same(state(reference), before[0]) and same(state(model), before[1]) and reference.training


def test_activation_matching_is_the_published_assignment():
    model, reference = (MLP((6, 20, 16, 4), seed=seed).double() for seed in (1, 0))
    source = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 6, generator=source, dtype=torch.float64) for n in (30, 11)]
    whole = torch.cat(batches)
    for method in ("activations", "correlations"):
        report = align(model, reference, batches[0], method=method, batches=batches)[1]
        for name, depth in (("0", 2), ("2", 4)):
            with torch.no_grad():
                ours, theirs = (nn.Sequential(*[*net][:depth])(whole).numpy() for net in (reference, model))
            if method == "activations":
                value = ours.T @ theirs
            else:
                value = np.nan_to_num(np.corrcoef(ours.T, theirs.T)[: ours.shape[1], ours.shape[1] :])
            found = report.permutations[name].numpy()
            rows = np.arange(len(found))
            best = value[linear_sum_assignment(value, maximize=True)].sum()
            assert value[rows, found].sum() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("batches", [torch.randn(3, 4), {"x": torch.randn(3, 4)}, 3, [], [torch.randn(2, 7)]])
def test_batches_that_are_none_are_refused(batches):
    with pytest.raises(ValueError, match="batches must "):
        align(square(1), square(), torch.randn(2, 4), method="activations", batches=batches)


def test_compiled_parts_run_as_they_were_written():
    batch, nets = torch.randn(5, 4), []
    for seed in (0, 1):
        net = MLP((4, 6, 5, 3), seed=seed)
        net[2] = torch.compile(net[2], backend="eager")
        net(batch)
        nets.append(net)
    new, report = align(nets[1], nets[0], batch)
    assert list(report.permutations) == ["0", "2._orig_mod"]
    torch.testing.assert_close(new(batch), nets[1](batch))
