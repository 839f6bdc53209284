from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, update_bn

from thalweg.probe import loss_curve, loss_line, train_curve
from thalweg.tasks import GPT


class Point(nn.Module):
    """A model that is nothing but its weights."""

    def __init__(self, *values: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def well(model: Point) -> torch.Tensor:
    return (model.w.square().sum() - 1) ** 2


def at_each(model, losses_of, mixtures, *checkpoints) -> list[float]:
    """Slow and literal: a copy of the model loaded with every mixture of the state dicts."""
    found = []
    for mixture in mixtures:
        other = copy.deepcopy(model).eval()
        other.load_state_dict(
            {
                name: sum(c * point[name] for c, point in zip(mixture, checkpoints, strict=True))
                if value.is_floating_point()
                else value
                for name, value in model.state_dict().items()
            }
        )
        found.append(losses_of(other))
    return found


def other_weights(model: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=source).to(value)
        if value.is_floating_point()
        else value.clone()
        for name, value in model.state_dict().items()
    }


def test_a_double_well_has_a_barrier_of_one_in_the_middle():
    path = loss_line(well, Point(0.0), Point(-1.0), Point(1.0), points=11)
    assert path.barrier == 1 and path.barrier_at == 0.5 and path.ends == (0, 0) and path.distance == 2
    for t, loss in zip(path.at, path.losses, strict=True):
        assert loss == pytest.approx(((2 * t - 1) ** 2 - 1) ** 2)


def test_the_barrier_is_measured_from_the_chord_and_not_from_the_higher_end():
    def slope_with_a_bump(model: Point) -> torch.Tensor:
        return 4 * model.w[0] + (model.w[0] == 0.5)

    path = loss_line(slope_with_a_bump, Point(0.0), Point(0.0), Point(1.0), points=3)
    assert path.losses == (0, 3, 4) and path.barrier == 1 and path.barrier_at == 0.5
    assert path.excess == (0, 1, 0)


def test_a_convex_loss_has_no_barrier():
    path = loss_line(lambda m: m.w.square().sum(), Point(0.0, 0.0), Point(-3.0, 1.0), Point(1.0, 2.0))
    assert path.barrier == 0 and len(path.at) == 25


def test_line_equals_loading_every_mixture(problem):
    end = other_weights(problem.model)
    start = copy.deepcopy(problem.model.state_dict())
    path = loss_line(
        lambda m: problem.loss(m(problem.inputs)), problem.model, start, end, points=5, norm_batches=()
    )
    mixtures = [(1 - t, t) for t in (0, 0.25, 0.5, 0.75, 1)]
    with torch.no_grad():
        slow = at_each(problem.model, lambda m: problem.loss(m(problem.inputs)).item(), mixtures, start, end)
    assert path.losses == pytest.approx(slow, rel=1e-9)
    names = [name for name, _ in problem.model.named_parameters()]
    assert path.distance == pytest.approx(
        torch.cat([(end[n] - start[n]).reshape(-1) for n in names]).norm().item()
    )


def test_curve_equals_loading_every_mixture(mlp):
    start, control, end = (other_weights(mlp.model, seed) for seed in (1, 2, 3))
    path = loss_curve(lambda m: mlp.loss(m(mlp.inputs)), mlp.model, start, control, end, points=4)
    mixtures = [((1 - t) ** 2, 2 * t * (1 - t), t**2) for t in (0, 1 / 3, 2 / 3, 1)]
    with torch.no_grad():
        slow = at_each(mlp.model, lambda m: mlp.loss(m(mlp.inputs)).item(), mixtures, start, control, end)
    assert path.losses == pytest.approx(slow, rel=1e-9)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    return model.double()


def test_normalisation_statistics_are_recomputed_at_every_point():
    model = normalised()
    batches = [torch.randn(20, 1, 6, 6, dtype=torch.float64) * (n + 1) for n in range(3)]
    targets = torch.randint(3, (20,))
    start, end = copy.deepcopy(model.state_dict()), other_weights(model)

    def loss_fn(m: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(m(batches[0]), targets)

    def slowly(m: nn.Module) -> float:
        m[3].p = 0.0
        update_bn(batches, m)
        with torch.no_grad():
            return loss_fn(m.eval()).item()

    path = loss_line(loss_fn, model, start, end, points=3, norm_batches=batches)
    slow = at_each(model, slowly, [(1, 0), (0.5, 0.5), (0, 1)], start, end)
    assert path.losses == pytest.approx(slow, rel=1e-9)
    stored = loss_line(loss_fn, model, start, end, points=3, norm_batches=())
    assert abs(stored.losses[1] - path.losses[1]) > 1e-3


def snapshot(model: nn.Module) -> list:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    kept = [(name, id(t), t.data_ptr(), t._version, t.detach().clone(), t.grad) for name, t in tensors]
    return [
        kept,
        [m.training for m in model.modules()],
        [getattr(m, "momentum", None) for m in model.modules()],
    ]


def same(one: list, other: list) -> bool:
    tensors = all(
        a[:4] == b[:4] and torch.equal(a[4], b[4]) and a[5] is b[5]
        for a, b in zip(one[0], other[0], strict=True)
    )
    return tensors and one[1:] == other[1:]


def test_model_and_random_state_are_left_as_they_were_also_after_an_error():
    model = normalised().train()
    model[3].eval()
    batch = torch.randn(8, 1, 6, 6, dtype=torch.float64)
    before, random, end = snapshot(model), torch.get_rng_state(), other_weights(model)
    calls = []

    def loss_fn(m: nn.Module) -> torch.Tensor:
        calls.append(torch.rand(()).item())
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return m(batch).square().mean()

    loss_line(loss_fn, model, model, end, points=3, norm_batches=[batch])
    assert same(snapshot(model), before) and torch.equal(torch.get_rng_state(), random)
    assert len(set(calls)) == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        loss_line(loss_fn, model, model, end, points=3, norm_batches=[batch])
    with pytest.raises(ValueError, match="at least one batch each time it is read"):
        loss_line(loss_fn, model, model, end, norm_batches=torch.utils.data.DataLoader([]))
    assert same(snapshot(model), before) and torch.equal(torch.get_rng_state(), random)


def test_a_graph_that_waits_for_its_backward_pass_stays_valid(mlp):
    expected = torch.autograd.grad(mlp.loss_fn(), mlp.params)
    waiting = mlp.loss_fn()
    loss_line(lambda m: mlp.loss(m(mlp.inputs)), mlp.model, mlp.model, other_weights(mlp.model), points=3)
    waiting.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(mlp.params, expected, strict=True))


def test_models_state_dicts_and_wrapped_ones_give_the_same_line(mlp, process_group):
    def loss_fn(m: nn.Module) -> torch.Tensor:
        return mlp.loss(m(mlp.inputs))

    end = copy.deepcopy(mlp.model)
    end.load_state_dict(other_weights(mlp.model))
    plain = loss_line(loss_fn, mlp.model, mlp.model, end, points=5)
    assert loss_line(loss_fn, mlp.model, mlp.model.state_dict(), end.state_dict(), points=5) == plain
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(mlp.model))
    assert loss_line(loss_fn, parallel, parallel, end, points=5) == plain
    assert loss_line(loss_fn, mlp.model, parallel.state_dict(), end, points=5) == plain
    compiled = torch.compile(copy.deepcopy(mlp.model))
    assert loss_line(loss_fn, compiled, compiled.state_dict(), end, points=5) == plain
    assert loss_line(loss_fn, mlp.model, AveragedModel(mlp.model), AveragedModel(end), points=5) == plain
    assert loss_line(loss_fn, mlp.model, AveragedModel(mlp.model).state_dict(), end, points=5) == plain


def test_tied_weights_move_and_count_once():
    model = GPT(11, 6, layers=1, heads=2, width=8, tied=True, seed=0)
    end = GPT(11, 6, layers=1, heads=2, width=8, tied=True, seed=1)
    tokens = torch.arange(12).view(2, 6) % 11
    path = loss_line(lambda m: m(tokens).square().mean(), model, model, end.state_dict(), points=3)
    assert path.losses[2] == pytest.approx(end(tokens).square().mean().item(), rel=1e-6)
    pairs = zip(model.parameters(), end.parameters(), strict=True)
    squares = sum((a - b).double().square().sum().item() for a, b in pairs)
    assert path.distance == pytest.approx(squares**0.5)
    assert model.head.weight is model.tokens.weight


def test_a_tied_weight_may_be_saved_under_either_of_its_names_but_not_as_two():
    model, end = (GPT(11, 6, layers=1, heads=2, width=8, tied=True, seed=seed) for seed in (0, 1))
    tokens = torch.arange(12).view(2, 6) % 11
    saved = end.state_dict()

    def line(state):
        return loss_line(lambda m: m(tokens).square().mean(), model, model, state, points=3)

    for name in ("tokens.weight", "head.weight"):  # files of safetensors hold one of them
        assert line({key: value for key, value in saved.items() if key != name}) == line(saved)
    with pytest.raises(ValueError, match=r"end\['head.weight'\] must equal end\['tokens.weight'\], to which"):
        line({**saved, "head.weight": saved["head.weight"] + 1})


def test_half_precision_weights_are_mixed_in_float32():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    start, end = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[1.0078125]])}
    path = loss_line(lambda m: m.weight.float().sum(), model, start, end, points=5)
    assert path.losses[0] == 1 and path.losses[-1] == 1.0078125 and model.weight.dtype == torch.bfloat16


def test_a_loss_that_explodes_between_the_ends_is_an_infinite_barrier():
    def loss_fn(m: Point) -> float:
        return math.nan if m.w.abs().item() < 0.1 else 0.0

    path = loss_line(loss_fn, Point(0.0), Point(-1.0), Point(1.0), points=3)
    assert path.barrier == math.inf and path.barrier_at == 0.5 and math.isnan(path.losses[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": 2}, "points must be an integer >= 3, got 2"),
        ({"end": 3}, "end must be a model or a state dict, got int"),
        (
            {"end": {"model": {"0.weight": torch.ones(6, 4)}, "step": 3}},
            "end must be a state dict, got a mapping that may hold it at 'model'",
        ),
        (
            {"end": {"0.weight": torch.ones(6, 4)}},
            "end must hold every parameter of the model, got none for '0.bias'",
        ),
        ({"end": nn.Linear(2, 2)}, "end must fit the model, which has no 'weight'"),
        ({"loss_fn": lambda m: torch.ones(2)}, r"loss_fn must return a scalar, got shape \(2,\)"),
        ({"loss_fn": lambda m: math.inf}, "loss_fn must be finite at the start of a path, got inf"),
    ],
)
def test_loss_line_refuses(mlp, changed, message):
    arguments = {
        "loss_fn": lambda m: 1.0,
        "model": mlp.model,
        "start": mlp.model,
        "end": mlp.model,
        **changed,
    }
    with pytest.raises(ValueError, match=message):
        loss_line(**arguments)


def test_a_checkpoint_of_another_shape_is_refused_by_name(mlp):
    wrong = {**mlp.model.state_dict(), "2.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"start\['2.weight'\] must have shape \(3, 6\), got \(1,\)"):
        loss_line(lambda m: 1.0, mlp.model, wrong, mlp.model)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, r"norm_batches must be given.*\(\) interpolates the stored ones"),
        (iter([torch.ones(2, 1, 6, 6)]), "readable again at every point.*got list_iterator"),
        (torch.ones(2, 1, 6, 6), "must be a list of batches, got a tensor"),
    ],
)
def test_a_model_with_running_statistics_wants_batches(batches, message):
    model = normalised()
    with pytest.raises(ValueError, match=message):
        loss_line(lambda m: 1.0, model, model, model, norm_batches=batches)


@pytest.mark.parametrize("inside", [False, True])
def test_a_callers_autocast_keeps_no_casts_of_other_weights(mlp, inside):
    model = mlp.model.float()
    start, end = copy.deepcopy(model.state_dict()), other_weights(model)
    inputs = mlp.inputs.float()

    def loss_fn(m: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return mlp.loss(m(inputs).float())

    expected = loss_line(loss_fn, model, start, end, points=5).losses
    assert len(set(expected)) == 5
    with torch.autocast("cpu", torch.bfloat16):
        before = loss_fn(model).item()
        if inside:
            found = loss_line(loss_fn, model, start, end, points=5).losses
        else:  # where the loss leaves the casts to the caller's
            found = loss_line(lambda m: mlp.loss(m(inputs).float()), model, start, end, points=5).losses
        after = loss_fn(model).item()
    assert found == expected and after == before


def test_statistics_that_a_checkpoint_lacks_are_recomputed_and_never_the_models_own():
    model = normalised()
    end = {name: value for name, value in other_weights(model).items() if "running" not in name}
    images = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss_fn(net):
        return net(images).square().mean()

    with pytest.raises(ValueError, match=r"end must hold the normalisation statistics.*'\S+running_mean'"):
        loss_line(loss_fn, model, model, end, norm_batches=())
    whole = {**model.state_dict(), **end}
    lines = [loss_line(loss_fn, model, model, it, points=3, norm_batches=[images]) for it in (end, whole)]
    assert lines[0].losses == lines[1].losses
    bend = train_curve(loss_fn, model, model, end, steps=1).control
    assert loss_curve(loss_fn, model, model, bend, end, points=3, norm_batches=[images]).ends == lines[0].ends


def test_weights_without_floating_values_are_refused_by_name(mlp):
    weights = mlp.model.state_dict()
    codes = {**weights, "2.weight": torch.ones_like(weights["2.weight"], dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"end\['2.weight'\] must be of a floating type, got torch.int8"):
        loss_line(lambda m: 1.0, mlp.model, weights, codes)
    empty = {name: value.to("meta") for name, value in weights.items()}
    with pytest.raises(ValueError, match=r"end\['0.weight'\] must have values, got.*meta"):
        loss_line(lambda m: 1.0, mlp.model, weights, empty)
