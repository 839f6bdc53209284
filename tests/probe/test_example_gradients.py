"""Per-example norms, inner products and squares equal those of gradients taken one example at a time."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from thalweg.probe import (
    example_alignment,
    example_gradient_gram,
    example_gradient_norms,
    example_losses,
    gradient_signal_to_noise,
)
from thalweg.probe._example_forms import Outer
from thalweg.tasks import CNN, GPT, MLP, RNN, Llama

B = 6


def classify(model, batch):
    inputs, targets = batch
    return functional.cross_entropy(model(inputs), targets, reduction="none")


def predict(model, batch):
    inputs, targets = batch
    return functional.cross_entropy(model(inputs).mT, targets, reduction="none").mean(1)


def regress(model, batch):
    return (model(batch[0]).flatten(1) - 1).square().mean(1)


class Attention(nn.Module):
    def __init__(self, batch_first=True, memory=False):
        super().__init__()
        self.batch_first, self.memory = batch_first, memory
        self.inner = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        memory = 2 * x[:, :3] if self.memory else x
        mixed = self.inner(x, memory, memory)[0]
        return mixed if self.batch_first else mixed.transpose(0, 1)


class VisionTransformer(nn.Module):
    """A class token, positions that are cut, a scale of its own: parameters outside of any layer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.scale, self.head = nn.Parameter(torch.ones(8)), nn.Linear(8, 4)

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions[:, :5]
        return self.head((self.encoder(tokens) * self.scale)[:, 0])


class Functional(nn.Module):
    """Weights used without layers, twice, transposed, through a sum over named dimensions."""

    def __init__(self):
        super().__init__()
        self.table, self.matrix = nn.Embedding(7, 4, padding_idx=2), nn.Parameter(torch.randn(4, 4))
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(()))

    def forward(self, tokens):
        x = self.table(tokens) @ self.matrix
        x = (x * self.scale - self.scale + self.shift).tanh()
        x = torch.einsum("btc,dc->btd", x, self.matrix) / self.shift
        return functional.linear(x.mean(1), self.table.weight)


class TimeFirst(nn.Module):
    """A batch flattened with time outermost, which no shape shows."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        batch, time = x.shape[:2]
        flat = x.transpose(0, 1).reshape(time * batch, -1)
        hidden = self.second(self.first(flat).tanh()).tanh()
        return self.head(hidden.view(time, batch, -1).mean(0))


class Sorted(nn.Module):
    """Examples change places inside."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.head(self.inner(x[order]).relu()[order.argsort()])


class Experts(nn.Module):
    """Each example goes to the expert that it chooses."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])

    def forward(self, x):
        chosen, out = (x.sum(1) > 0).long(), torch.zeros(len(x), 3, dtype=x.dtype)
        for index, expert in enumerate(self.experts):
            mine = (chosen == index).nonzero().flatten()
            if len(mine):
                out = out.index_add(0, mine, expert(x[mine]))
        return out


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = MLP((5, 8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(checkpoint(self.inner, x, use_reentrant=False))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


class Frames(nn.Module):
    """Convolutions over the flattened frames of each example."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(True), nn.Flatten())
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1))


def normalized():
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, groups=2, padding="same", dilation=2),
        nn.GroupNorm(2, 6),
        nn.InstanceNorm1d(6, affine=True),
        nn.LayerNorm(7),
        nn.RMSNorm(7),
        nn.Flatten(),
        nn.Linear(42, 3),
    )


def strided(transposed=False):
    if transposed:
        first: nn.Module = nn.ConvTranspose2d(2, 4, 3, stride=2)
    else:
        first = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(4 * (7 * 7 if transposed else 2 * 5), 3))


def valid():
    inner = nn.Conv2d(2, 4, 3, padding="valid", dilation=2)
    return nn.Sequential(inner, nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def volume():
    inner = nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), groups=2)
    return nn.Sequential(inner, nn.Tanh(), nn.Flatten(), nn.Linear(300, 3))


tokens = torch.randint(7, (B, 5), generator=torch.Generator().manual_seed(0))
labels = torch.arange(B) % 3
vectors = torch.randn(B, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cube(*shape):
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# Name to model, inputs, targets, loss; and which parameters have no short way.
PROBLEMS = {
    "mlp": (lambda: MLP((5, 8, 8, 3)), vectors, labels, classify, ()),
    "cnn": (lambda: CNN(4, width=3), cube(1, 8, 8), labels, classify, ()),
    "gpt": (lambda: GPT(7, 8, 2, 2, 8), tokens, tokens, predict, ()),
    "gpt, tied": (lambda: GPT(7, 8, 1, 2, 8, tied=True), tokens, tokens, predict, ()),
    "gpt, as long as wide": (lambda: GPT(7, 8, 1, 2, 8), tokens[:5], tokens[:5], predict, ()),
    "llama": (lambda: Llama(7, 8, 8, 2, 1), tokens, tokens, predict, ()),
    "rnn": (lambda: RNN(7, 6, 3), tokens, labels, classify, ()),
    "lstm": (Lstm, cube(4, 4), labels, classify, ()),
    "attention": (Attention, cube(5, 8), labels, regress, ()),
    "attention, time first": (lambda: Attention(False), cube(B, 8), labels, regress, ()),
    "attention to a memory": (lambda: Attention(memory=True), cube(5, 8), labels, regress, ()),
    "vision transformer": (VisionTransformer, cube(1, 8, 8), labels, classify, ()),
    "norms": (normalized, cube(4, 7), labels, classify, ()),
    "convolution": (strided, cube(2, 4, 3), labels, classify, ()),
    "convolution, valid": (valid, cube(2, 5, 6), labels, classify, ()),
    "convolution in 3-d": (volume, cube(2, 3, 6, 5), labels, classify, ()),
    "frames": (Frames, cube(3, 1, 6, 6), labels, classify, ()),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 3)), vectors, labels, classify, ()),
    "functional": (Functional, tokens, labels, classify, ("matrix", "shift")),
    "transposed": (
        lambda: strided(True),
        cube(2, 3, 3),
        labels,
        classify,
        ("0.weight", "0.bias"),
    ),
    "time first": (
        TimeFirst,
        cube(4, 5),
        labels,
        classify,
        ("first.weight", "first.bias", "second.weight", "second.bias"),
    ),
    "sorted": (Sorted, vectors, labels, classify, ("inner.weight", "inner.bias")),
    "experts": (Experts, vectors, labels, classify, "all"),
    "recomputed": (Recomputed, vectors, labels, classify, "all"),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    torch.manual_seed(0)
    build, inputs, targets, loss_fn, slow = PROBLEMS[request.param]
    model = build().double()
    names = tuple(name for name, _ in model.named_parameters())
    return model, (inputs, targets), loss_fn, names if slow == "all" else slow


def explicit(model, batch, loss_fn):
    """Gradients one example at a time, by name, (B, *shape)."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    training, rows = model.training, []
    model.eval()
    for index in range(len(batch[0])):
        loss = loss_fn(model, tuple(t[index : index + 1] for t in batch))[0]
        rows.append(
            torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        )
    model.train(training)
    return {name: torch.stack(column) for name, column in zip(params, zip(*rows, strict=True), strict=True)}


def flat(g):
    return g.reshape(len(g), -1)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_norms_equal_those_of_single_examples_and_say_what_was_written_out(problem):
    model, batch, loss_fn, slow = problem
    found = example_gradient_norms(model, batch, loss_fn)
    gradients = explicit(model, batch, loss_fn)
    assert found.materialised == slow
    assert list(found.per_layer) == list(gradients)
    for name, g in gradients.items():
        close(found.per_layer[name], flat(g).norm(dim=1))
    close(found.norms, torch.cat([flat(g) for g in gradients.values()], 1).norm(dim=1))
    close(found.losses, example_losses(model, batch, loss_fn))


def test_all_inner_products_equal_those_of_single_examples(problem):
    model, batch, loss_fn, _ = problem
    found = example_gradient_gram(model, batch, loss_fn)
    for name, g in explicit(model, batch, loss_fn).items():
        close(found.per_layer[name], flat(g) @ flat(g).T)
    close(found.gram, sum(found.per_layer.values()))


def test_inner_products_with_the_mean_equal_those_of_single_examples(problem):
    model, batch, loss_fn, _ = problem
    found = example_alignment(model, batch, loss_fn)
    gradients = explicit(model, batch, loss_fn)
    for name, g in gradients.items():
        close(found.per_layer[name], flat(g) @ g.mean(0).flatten())
    whole = torch.cat([flat(g) for g in gradients.values()], 1)
    close(found.cosines, functional.cosine_similarity(whole, whole.mean(0, keepdim=True)))


def test_means_and_variances_equal_those_of_single_examples(problem):
    model, batch, loss_fn, _ = problem
    found = gradient_signal_to_noise(model, batch, loss_fn)
    for name, g in explicit(model, batch, loss_fn).items():
        close(found.variance[name], g.var(0))
        sure = g.var(0) > 1e-12
        close(found.ratio[name][sure], (g.mean(0).square() / g.var(0))[sure], 1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("name", ["cnn", "gpt, tied", "functional", "experts"])
def test_chunks_change_nothing(name, chunk_size):
    torch.manual_seed(0)
    build, inputs, targets, loss_fn, _ = PROBLEMS[name]
    model, batch = build().double(), (inputs, targets)
    whole = example_alignment(model, batch, loss_fn)
    found = example_alignment(model, batch, loss_fn, chunk_size=chunk_size)
    close(found.dots, whole.dots)
    close(found.norms, whole.norms)
    ratios = gradient_signal_to_noise(model, batch, loss_fn, chunk_size=chunk_size).variance
    for layer, expected in gradient_signal_to_noise(model, batch, loss_fn).variance.items():
        close(ratios[layer], expected)


@pytest.mark.parametrize("positions", [1, 2, 40])
def test_both_formulas_of_a_linear_layer_agree(positions):
    """Few positions go by inner products of positions, many by the gradients themselves."""
    model = nn.Linear(6, 5).double()
    inputs = torch.randn(8, positions, 6, dtype=torch.float64)

    def loss_fn(model, batch):
        return (model(batch) ** 3).sum((1, 2))

    found = example_gradient_norms(model, inputs, loss_fn)
    output_gradients = 3 * model(inputs).detach() ** 2
    gradients = torch.einsum("btp,btq->bpq", output_gradients, inputs)
    close(found.per_layer["weight"], gradients.flatten(1).norm(dim=1))


def test_a_given_direction_is_used():
    model, batch = MLP((5, 8, 3), seed=0).double(), (vectors, labels)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    found = example_alignment(model, batch, classify, direction=direction)
    gradients = explicit(model, batch, classify)
    close(found.dots, sum(flat(g) @ direction[name].flatten() for name, g in gradients.items()))
    length = torch.cat([d.flatten() for d in direction.values()]).norm()
    close(found.cosines, found.dots / found.norms / length)


def allocations(run):
    """Bytes allocated, and freed again as negative numbers, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    return [one.nbytes() for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]


def peak(run):
    """Bytes allocated at one time, at most."""
    return max(accumulate(allocations(run)))


def test_what_is_written_out_is_written_to_one_place():
    left, right = torch.randn(2**13, 1, 16, 12), torch.randn(2**13, 1, 16, 20)
    form = Outer(2**13, (1, 16, 12, 20), (12, 20), lambda part: (left[part], right[part]))
    rows = (left.mT @ right).flatten(1)
    close(form.norms(True)[0], rows.square().sum(1), 1e-4)
    close(form.norms(True)[1].flatten(), rows.sum(0), 1e-4)
    close(form.squares().flatten(), rows.square().sum(0), 1e-4)
    assert sum(max(size, 0) for size in allocations(lambda: form.norms(True))) < 4 * rows.numel()


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_memory_is_that_of_one_pass(name):
    if name == "mlp":
        model, batch, loss_fn = (
            MLP((64, 256, 256, 10)),
            (torch.randn(128, 64), torch.arange(128) % 10),
            classify,
        )
    else:
        tokens = torch.randint(97, (64, 16))
        model, batch, loss_fn = GPT(97, 16), (tokens, tokens), predict
    params = list(model.parameters())
    one_pass = peak(lambda: torch.autograd.grad(loss_fn(model, batch).mean(), params))
    assert peak(lambda: example_gradient_norms(model, batch, loss_fn)) <= 1.5 * one_pass
    assert peak(lambda: example_alignment(model, batch, loss_fn)) <= 2 * one_pass
    written_out = 4 * len(batch[0]) * sum(p.numel() for p in params)
    assert one_pass < written_out / 5


def test_frozen_and_unused_parameters():
    model = MLP((5, 8, 3), seed=0).double()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    found = example_gradient_norms(model, (vectors, labels), classify)
    assert list(found.per_layer) == ["unused", "0.bias", "2.weight", "2.bias"]
    assert found.per_layer["unused"].tolist() == [0] * B


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_small_batches(examples):
    model, batch = GPT(7, 8, 1, 2, 8, seed=0).double(), (tokens[:examples], tokens[:examples])
    found = example_gradient_norms(model, batch, predict)
    close(
        found.norms,
        torch.cat([flat(g) for g in explicit(model, batch, predict).values()], 1).norm(dim=1),
    )


def test_float32_and_autocast_are_close():
    model, batch = MLP((5, 16, 3), seed=0), (vectors.float(), labels)
    expected = example_gradient_norms(MLP((5, 16, 3), seed=0).double(), (vectors, labels), classify).norms
    close(example_gradient_norms(model, batch, classify).norms, expected, 1e-5)

    def mixed(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return classify(model, batch)

    found = example_gradient_norms(model, batch, mixed)
    close(found.norms, expected, 0.03)
    assert found.materialised == ()


@pytest.mark.parametrize("kind", ["mapping", "list in a tuple"])
def test_batches_of_other_kinds(kind):
    model = MLP((5, 8, 3), seed=0).double()
    weights = torch.ones(3, dtype=torch.float64)  # not as long as the batch, so not cut
    batch = {"x": vectors, "y": labels, "w": weights} if kind == "mapping" else ([vectors, labels], weights)

    def loss_fn(model, batch):
        x, y, w = batch.values() if kind == "mapping" else (*batch[0], batch[1])
        return functional.cross_entropy(model(x), y, w, reduction="none")

    expected = example_gradient_norms(model, (vectors, labels), classify).norms
    close(example_gradient_norms(model, batch, loss_fn).norms, expected)


def test_nothing_is_left_behind():
    model = CNN(3, width=2, seed=0)
    model[1].eval()  # frozen by hand, which must survive
    model(torch.randn(4, 1, 8, 8))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    batch = (torch.randn(B, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels)
    example_gradient_norms(model, batch, classify)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="finite"):
        example_gradient_norms(model, batch, lambda model, batch: classify(model, batch) / 0)
    assert [m.training for m in model.modules()] == flags


def test_a_compiled_model_is_run_eagerly():
    model = MLP((5, 8, 3), seed=0).double()
    expected = example_gradient_norms(model, (vectors, labels), classify)
    found = example_gradient_norms(torch.compile(model), (vectors, labels), classify)
    close(found.norms, expected.norms)
    assert list(found.per_layer) == list(expected.per_layer)


def test_random_losses_are_allowed_on_request():
    model = MLP((5, 8, 3), seed=0).double()

    def noisy(model, batch):
        return classify(model, batch) + torch.rand(len(batch[0]), dtype=torch.float64)

    with pytest.raises(ValueError, match=r"same loss whatever else is in the batch.*verify=False"):
        example_gradient_norms(model, (vectors, labels), noisy)
    found = example_gradient_norms(model, (vectors, labels), noisy, verify=False)
    close(found.norms, example_gradient_norms(model, (vectors, labels), classify).norms)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda m, b: classify(m, b).mean(),
            r"one loss an example, shape \(2,\) for 2, got shape \(\); a loss",
        ),
        (lambda m, b: m(b[0]), r"got shape \(2, 3\)"),
        (lambda m, b: 1.0, "got float"),
        (lambda m, b: classify(m, b).detach(), "require a gradient, got ones without"),
        (lambda m, b: classify(m, b) * float("nan"), "finite losses, got nan for example 0 and 1 more"),
        (lambda m, b: classify(m, b) - classify(m, b).mean(), "same loss whatever else is in the batch"),
    ],
)
def test_losses_that_do_not_fit_are_refused(loss_fn, message):
    model = MLP((5, 8, 3), seed=0).double()
    with pytest.raises(ValueError, match=message):
        example_gradient_norms(model, (vectors, labels), loss_fn)


def test_other_bad_arguments_are_refused():
    model, batch = MLP((5, 8, 3), seed=0).double(), (vectors, labels)
    with pytest.raises(ValueError, match=r"batch must hold a tensor .* got str"):
        example_gradient_norms(model, "words", classify)
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1, got 0"):
        example_gradient_norms(model, batch, classify, chunk_size=0)
    with pytest.raises(ValueError, match=r"direction must have an entry for '0\.weight'"):
        example_alignment(model, batch, classify, direction={})
    with pytest.raises(ValueError, match=r"direction\['0\.weight'\] must have shape \(8, 5\), got \(5, 8\)"):
        shapes = {name: torch.zeros(p.shape[::-1]) for name, p in model.named_parameters()}
        example_alignment(model, batch, classify, direction=shapes)
    with pytest.raises(ValueError, match="must have a parameter that requires a gradient"):
        example_gradient_norms(model.requires_grad_(False), batch, classify)
