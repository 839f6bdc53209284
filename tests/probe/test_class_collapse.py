from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.probe import _class_sums, class_variability, neural_collapse, neural_collapse_of
from thalweg.tasks import CNN, GPT, MLP


def literal(features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict:
    """The definitions with explicit d x d matrices, one class at a time."""
    classes = sorted(set(labels.tolist()))
    k = len(classes)
    means = torch.stack([features[labels == c].mean(0) for c in classes])
    centre = means.mean(0)
    within = sum(
        torch.outer(h - means[classes.index(int(c))], h - means[classes.index(int(c))])
        for h, c in zip(features, labels, strict=True)
    ) / len(features)
    between = sum(torch.outer(m - centre, m - centre) for m in means) / k
    m = means - centre
    unit = m / m.norm(dim=1, keepdim=True)
    simplex = torch.full((k, k), -1 / (k - 1), dtype=torch.float64).fill_diagonal_(1)
    raw = means / means.norm(dim=1, keepdim=True)
    w = weight[classes]
    head = (features @ weight.T + bias).argmax(1)
    nearest = torch.stack([((h - means) ** 2).sum(1).argmin() for h in features])
    return {
        "nc1": (torch.trace(within @ torch.linalg.pinv(between, rtol=1e-6)) / k).item(),
        "variability": (torch.trace(within) / torch.trace(between)).item(),
        "nc2": (unit @ unit.T - simplex).norm().item(),
        "nc2_norms": (m.norm(dim=1).std(correction=0) / m.norm(dim=1).mean()).item(),
        "frame": (raw @ raw.T - torch.eye(k, dtype=torch.float64)).norm().item(),
        "nc3": (w / w.norm() - m / m.norm()).norm().item(),
        "nc4": (head != torch.tensor(classes)[nearest]).double().mean().item(),
    }


def drawn(n: int = 60, width: int = 9, classes: int = 4):
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=source)
    centres = torch.randn(classes, width, generator=source, dtype=torch.float64)
    features = centres[labels] + torch.randn(n, width, generator=source, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=source, dtype=torch.float64)
    return features, labels, weight, torch.randn(classes, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("width", [9, 2])
def test_all_measures_equal_their_literal_definitions_with_unbalanced_classes(width):
    features, labels, weight, bias = drawn(width=width)
    found = neural_collapse_of(features, labels, weight, bias)
    for name, value in literal(features, labels, weight, bias).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert class_variability(features, labels) == pytest.approx(found.variability)
    assert (found.classes, found.examples, found.layers) == (4, 60, {})


def test_a_simplex_read_by_its_own_means_is_complete_collapse():
    k = 5
    simplex = torch.eye(k, dtype=torch.float64) - 1 / k
    turn = torch.linalg.qr(
        torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).Q
    means = 3 * simplex @ turn[:k]
    labels = torch.arange(k).repeat(4)
    found = neural_collapse_of(means[labels] + turn[6], labels, 0.2 * means)
    signs = (found.nc1, found.variability, found.nc2, found.nc2_norms, found.nc3, found.nc4)
    assert max(signs) < 1e-12 and found.frame > 0.1


def test_orthogonal_means_are_a_frame_and_after_centring_a_simplex():
    labels = torch.arange(4).repeat(3)
    found = neural_collapse_of(2 * torch.eye(4)[labels], labels)
    assert found.frame < 1e-12 and found.nc2 < 1e-12 and found.nc3 is None and found.nc4 is None


def test_absent_classes_and_ignored_rows_do_not_count():
    features, labels, weight, bias = drawn()
    keep = labels != 2
    found = neural_collapse_of(features, labels.where(keep, -100), weight, bias)
    expected = literal(features[keep], labels[keep], weight, bias)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert found.classes == 3


def test_a_model_is_measured_where_its_last_linear_layer_reads_and_at_every_activation():
    model, x = MLP((6, 12, 8, 3), seed=0).double(), torch.randn(50, 6, dtype=torch.float64)
    labels = torch.arange(50) % 3
    found = neural_collapse(model, (x, labels), batch_size=16)
    first = nn.Sequential(*list(model)[:2])(x).detach()
    second = nn.Sequential(*list(model)[:4])(x).detach()
    head = model[4]
    for name, value in literal(second, labels, head.weight.detach(), head.bias.detach()).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert list(found.layers) == ["1", "3", "4"]
    assert found.layers["1"] == pytest.approx(class_variability(first, labels))
    assert found.layers["4"] == found.variability == pytest.approx(found.layers["3"])
    alone = neural_collapse(model, (x, labels), classifier="4", layers=[])
    assert alone.layers == {"4": pytest.approx(found.variability)}


def test_images_are_flattened_and_batch_statistics_stay():
    model = CNN(classes=3, width=4, seed=0).train()
    x = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 3
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    found = neural_collapse(model, (x, labels))
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers()) and model.training
    model.eval()
    assert found.layers["2"] == pytest.approx(
        class_variability(nn.Sequential(*list(model)[:3])(x).flatten(1), labels), rel=1e-5
    )
    assert found.variability == pytest.approx(
        class_variability(nn.Sequential(*list(model)[:-1])(x), labels), rel=1e-5
    )


def test_a_language_model_has_a_class_at_every_position():
    model = GPT(5, context=6, layers=1, heads=2, width=8, seed=0)
    tokens = torch.randint(5, (10, 7), generator=torch.Generator().manual_seed(0))
    found = neural_collapse(model, (tokens[:, :-1], tokens[:, 1:]), batch_size=4)
    heard = []
    model.head.register_forward_hook(lambda _m, inputs, _o: heard.append(inputs[0].detach()))
    model(tokens[:, :-1])
    assert found.variability == pytest.approx(class_variability(heard[0], tokens[:, 1:]), rel=1e-5)
    assert found.examples == 60 and set(found.layers) == {"blocks.0.feed_forward.activation", "head"}


def test_training_past_zero_error_collapses():
    torch.manual_seed(0)
    x = torch.randn(60, 10)
    labels = torch.arange(60) % 3
    model = MLP((10, 64, 64, 3), seed=0)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    start = neural_collapse(model, (x, labels))
    for _ in range(300):
        adam.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        adam.step()
    end = neural_collapse(model, (x, labels))
    assert end.variability < start.variability / 10 and end.nc2 < start.nc2 / 2
    assert end.nc4 == 0 and end.layers["1"] > end.layers["3"]


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.ones(4, 2), torch.zeros(3, dtype=torch.long), r"got \(3,\) for \(4, 2\)"),
        (torch.ones(4, 2), torch.zeros(4, dtype=torch.long), "two classes or more, got 1"),
        (torch.ones(4, 2), torch.arange(4), "class means that coincide"),
        (torch.full((4, 2), torch.nan), torch.arange(4), "features must be finite"),
        (torch.ones(4, 2), torch.arange(4) - 2, "integers of at least 0"),
    ],
)
def test_features_must_fit_their_labels(features, labels, message):
    with pytest.raises(ValueError, match=message):
        neural_collapse_of(features, labels)


def test_the_classifier_must_be_known():
    x, labels = torch.randn(6, 4), torch.arange(6) % 3
    soft = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    with pytest.raises(ValueError, match=r"classifier must name the last nn\.Linear where its output is not"):
        neural_collapse(soft, (x, labels))
    assert neural_collapse(soft, (x, labels), classifier="0").layers.keys() == {"0"}
    with pytest.raises(ValueError, match=r"must name an nn.Linear, got '1' \(Softmax\)"):
        neural_collapse(soft, (x, labels), classifier="1")
    with pytest.raises(ValueError, match="labels must be below the 3 outputs of '0', got 5"):
        neural_collapse(soft, (x, torch.arange(6)), classifier="0")
    with pytest.raises(ValueError, match=r"weight must have shape \(classes, 4\)"):
        neural_collapse_of(x, labels, torch.ones(2, 4))


def test_a_mean_far_from_the_origin_hides_no_scatter():
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(40)
    near = torch.randn(5, 20, dtype=torch.float64, generator=source)[labels]
    near = near + 1e-5 * torch.randn(200, 20, dtype=torch.float64, generator=source)
    assert class_variability(near, labels) == pytest.approx(1.04e-10, rel=0.1)
    far = near + 1e4  # by which the features themselves are rounded
    assert class_variability(far, labels) == pytest.approx(class_variability(far - 1e4, labels), rel=1e-6)


def test_batches_of_any_size_add_up_to_the_scatter_of_all():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double(),
        torch.randn(50, 6).double(),
    )
    labels = (torch.arange(50) ** 2) % 4
    whole = neural_collapse(model, (x, labels))
    for size in (1, 7, 49):
        found = neural_collapse(model, (x, labels), batch_size=size)
        assert found.layers == pytest.approx(whole.layers, rel=1e-12)
        assert found.variability == pytest.approx(class_variability(model[:2](x), labels), rel=1e-12)


def test_a_silent_layer_has_no_variability_and_the_others_keep_theirs():
    class Skipped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.dead, self.act, self.live, self.head = nn.Linear(6, 9), nn.ReLU(), nn.Tanh(), nn.Linear(6, 3)
            nn.init.constant_(self.dead.bias, -100)

        def forward(self, x):
            return self.head(self.live(x) + self.act(self.dead(x)).sum(1, keepdim=True))

    x, labels = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    found = neural_collapse(Skipped(), (x, labels))
    assert math.isnan(found.layers["act"])
    assert found.layers["live"] == pytest.approx(class_variability(x.tanh(), labels), rel=1e-6)
    with pytest.raises(ValueError, match="class means that coincide"):
        neural_collapse_of(torch.zeros(4, 3), torch.arange(4) % 2)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.bool])
def test_labels_may_be_whole_numbers_of_any_type(kind):
    features, labels, weight, bias = drawn()
    labels = labels % 2
    found = neural_collapse_of(features, labels.to(kind), weight, bias)
    assert found == neural_collapse_of(features, labels, weight, bias)


class ScoresEveryPosition(nn.Module):
    """Like a language model that classifies a sequence by its last position."""

    def __init__(self):
        super().__init__()
        self.embed, self.score = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.score(torch.tanh(self.embed(tokens)))[:, -1]


def test_a_head_that_reads_positions_wants_labels_of_positions():
    model, tokens = ScoresEveryPosition(), torch.arange(24).view(6, 4) % 7
    labels = torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"position that 'score' reads.*\(6, 4, 5\), got labels \(6,\)"):
        neural_collapse(model, (tokens, labels), classifier="score")
    at_the_end = torch.full((6, 4), -100)
    at_the_end[:, -1] = labels
    found = neural_collapse(model, (tokens, at_the_end), classifier="score")
    last = torch.tanh(model.embed(tokens))[:, -1]
    assert found.nc1 == pytest.approx(neural_collapse_of(last, labels).nc1)


def test_labels_that_are_no_tensor_are_refused():
    with pytest.raises(ValueError, match="data must have a tensor of targets, got list"):
        neural_collapse(nn.Linear(2, 2), (torch.zeros(2, 2), [0, 1]))


@pytest.mark.parametrize("collapsed", [False, True])
def test_tables_over_many_classes_in_blocks_give_the_numbers_of_whole_ones(monkeypatch, collapsed):
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 23
    weight = torch.linalg.qr(torch.randn(30, 30, generator=source, dtype=torch.float64)).Q[:24]
    features = weight[labels] + (0.0 if collapsed else 0.5) * torch.randn(
        120, 30, generator=source, dtype=torch.float64
    )
    whole = neural_collapse_of(features, labels, weight)
    means = torch.stack([features[labels == k].mean(0) for k in range(23)])
    unit = functional.normalize(means - means.mean(0), dim=1)
    simplex = (23 * torch.eye(23, dtype=torch.float64) - 1) / 22
    assert whole.nc2 == pytest.approx((unit @ unit.T - simplex).norm().item(), abs=1e-13)
    monkeypatch.setattr(_class_sums, "PAIRS", 50)
    blocks = neural_collapse_of(features, labels, weight)
    assert blocks.layers == whole.layers == {}
    numbers = [{k: v for k, v in vars(one).items() if k != "layers"} for one in (blocks, whole)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-12, abs=1e-13)
    assert (blocks.nc2 < 1e-13) == collapsed


def test_a_vocabulary_of_classes_needs_no_table_of_pairs():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                Largest.numel = max(Largest.numel, result.numel())
            return result

    classes, rows = 2500, 5000
    features = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    with Largest():
        neural_collapse_of(features, torch.arange(rows) % classes, features[:classes])
    assert Largest.numel <= 2**22 < classes * classes
