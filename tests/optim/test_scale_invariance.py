"""AdamP and SGDP: against a peer, and the identities that their projection promises."""

import pytest
import pytorch_optimizer
import torch
import transcriptions_rows
from test_trajectories import TOLERANCE, distance, run, transcribe, weights_and_gradients
from torch import nn
from toys import either_path

from thalweg import optim
from thalweg.optim.transform import Scalars


def turned(w, gradients, views):
    """The gradients with their component along each row of the view of ``w`` taken out, for some steps."""
    made = []
    for step, g in enumerate(gradients):
        view = views[step % len(views)]
        if view is not None:
            rows, weights = g.reshape(view), w.reshape(view)
            g = rows - (rows * weights).sum(1, keepdim=True) / weights.square().sum(1, keepdim=True) * weights
        made.append(g.reshape(w.shape))
    return made


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 3, 3)], ids=str)
@either_path
def test_each_of_the_three_regimes_is_taken_as_the_formula_says(shape, compile):
    """Gradients tangent to each channel, to the whole tensor, or to neither, by turns; tiny steps."""
    w = torch.randn(shape, dtype=torch.float64)
    gradients = turned(w, torch.randn(12, *shape, dtype=torch.float64) + w, [(shape[0], -1), (1, -1), None])
    settings = {"lr": 1e-6, "momentum": 0.5, "weight_decay": 0.3}
    path = run(lambda params: optim.SGDP(params, compile=compile, **settings), [w], [[g] for g in gradients])
    reference = list(transcriptions_rows.sgdp(w, gradients, **settings))
    kept = [transcriptions_rows.projected(w, g, g, 0.1, 0.1)[1] for g in gradients]
    assert kept == [0.1, 0.1, 1.0] * 4
    before = w
    for (ours,), theirs in zip(path, reference, strict=True):
        torch.testing.assert_close(ours - before, theirs - before, rtol=1e-7, atol=1e-14)
        before = ours


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("nesterov", [False, True])
def test_adamp_without_epsilon_follows_pytorch_optimizer(dtype, nesterov):
    weights, steps = weights_and_gradients(dtype, gaps=False)
    settings = {"lr": 1e-2, "weight_decay": 0.5, "eps": 0.0, "delta": 1.5, "nesterov": nesterov}
    path = run(lambda params: optim.AdamP(params, **settings), weights, steps)
    peer = run(lambda params: pytorch_optimizer.AdamP(params, **settings), weights, steps)
    assert distance(path, peer) < TOLERANCE[dtype]


def test_pytorch_optimizers_adamp_adds_epsilon_before_the_bias_correction():
    """A first gradient as small as epsilon: a step of 1/(1 + 1), as released; 1/(1 + sqrt(1000)) in 4.1."""
    sizes = {}
    for name, make in {"ours": optim.AdamP, "theirs": pytorch_optimizer.AdamP}.items():
        first = [[torch.full((1,), 1e-8, dtype=torch.float64)]]
        path = run(lambda params, make=make: make(params, lr=1.0), [torch.zeros(1).double()], first)
        sizes[name] = -path[0][0].item()
    assert sizes["ours"] == pytest.approx(1 / 2, rel=1e-6)
    assert sizes["theirs"] == pytest.approx(1 / (1 + 1000**0.5), rel=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdp_follows_pytorch_optimizer(dtype, nesterov):
    weights, steps = weights_and_gradients(dtype)
    settings = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1, "delta": 1.5, "nesterov": nesterov}
    path = run(lambda params: optim.SGDP(params, **settings), weights, steps)
    peer = run(lambda params: pytorch_optimizer.SGDP(params, eps=1e-12, **settings), weights, steps)
    assert distance(path, peer) < TOLERANCE[dtype]


def test_the_first_gradient_is_not_dampened_as_in_torch_where_pytorch_optimizer_dampens_it():
    first = {}
    for name, make in {
        "ours": optim.SGDP,
        "theirs": pytorch_optimizer.SGDP,
        "torch": torch.optim.SGD,
    }.items():
        w = nn.Parameter(torch.zeros(1))
        w.grad = torch.ones(1)
        make([w], lr=1.0, momentum=0.9, dampening=0.25).step()
        first[name] = -w.item()
    assert first == {"ours": 1.0, "theirs": 0.75, "torch": 1.0}


@pytest.mark.parametrize(("rows", "compile"), [(1, False), (7, False), (7, True)])
def test_an_adamp_step_is_tangent_to_a_scale_invariant_weight_and_adds_its_square(rows, compile):
    """Pythagoras: |w'|^2 = |w|^2 + lr^2 |u|^2, for each row in front of a normalisation, to 1e-12."""
    inputs = torch.randn(40, 9, dtype=torch.float64)
    w = nn.Parameter(torch.randn(rows, 9, dtype=torch.float64))
    optimizer = optim.AdamP([w], lr=0.1, compile=compile)
    for _ in range(30):
        optimizer.zero_grad()
        (inputs @ nn.functional.normalize(w, dim=1).t()).tanh().sum().backward()
        before = w.detach().clone()
        optimizer.step()
        moved = w.detach() - before
        along = (moved * before).sum(1) / (moved.norm(dim=1) * before.norm(dim=1))
        assert moved.norm(dim=1).min() > 1e-3
        assert along.abs().max() < 1e-12
        torch.testing.assert_close(
            w.detach().square().sum(1), before.square().sum(1) + moved.square().sum(1), rtol=1e-12, atol=0
        )


def test_plain_adam_steps_along_the_same_weight():
    """What the identity above would miss: without the projection the same steps are not tangent."""
    inputs = torch.randn(40, 9, dtype=torch.float64)
    w = nn.Parameter(torch.randn(1, 9, dtype=torch.float64))
    optimizer = optim.AdamW([w], lr=0.1, weight_decay=0.0)
    worst = 0.0
    for _ in range(30):
        optimizer.zero_grad()
        (inputs @ nn.functional.normalize(w, dim=1).t()).tanh().sum().backward()
        before = w.detach().clone()
        optimizer.step()
        moved = w.detach() - before
        worst = max(worst, ((moved * before).sum().abs() / (moved.norm() * before.norm())).item())
    assert worst > 0.05


def test_momentum_lengthens_a_scale_invariant_weight_nineteen_times_faster():
    """With orthonormal tangent gradients |w|^2 grows by 1 + 2 mu / (1 - mu) = 19 times the squared steps."""
    steps, mu = 400, 0.9
    gained = {}
    for name, make in {"SGD": optim.SGD, "SGDP": optim.SGDP}.items():
        w = nn.Parameter(torch.eye(1, 2, dtype=torch.float64))
        optimizer = make([w], lr=1e-4, momentum=mu)
        squares = 0.0
        for _ in range(steps):
            here = w.detach().clone()
            w.grad = torch.stack([-here[0, 1], here[0, 0]])[None] / here.norm()
            optimizer.step()
            squares += (w.detach() - here).square().sum().item()
        gained[name] = (w.detach().square().sum().item() - 1) / squares
    assert gained["SGDP"] == pytest.approx(1.0, abs=1e-6)
    assert gained["SGD"] == pytest.approx(19, rel=0.05)


def test_a_weight_that_is_not_scale_invariant_is_almost_never_projected():
    """Linear regression from a random start, 64 inputs, noise in the targets: at most 1 step in 100."""
    fired = 0
    for seed in range(5):
        torch.manual_seed(seed)
        inputs = torch.randn(256, 64, dtype=torch.float64)
        targets = inputs @ torch.randn(64, 3, dtype=torch.float64)
        w = nn.Parameter(torch.randn(3, 64, dtype=torch.float64))
        optimizer = optim.SGDP([w], lr=1e-9, weight_decay=1.0, wd_ratio=0.0, momentum=0.0)
        for _ in range(100):
            batch = torch.randint(256, (32,))
            optimizer.zero_grad()
            nn.functional.mse_loss(inputs[batch] @ w.t(), targets[batch]).backward()
            before = w.detach().clone()
            optimizer.step()
            # With wd_ratio = 0 a projected step has no part along the weight at all.
            moved = w.detach() - before
            fired += (moved * before).sum().abs() < 1e-6 * moved.norm() * before.norm()
    assert fired <= 5


@either_path
def test_a_row_of_zeros_is_left_alone_and_does_not_keep_the_others_from_being_projected(compile):
    w = nn.Parameter(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    w.grad = torch.tensor([[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    optim.SGDP([w], lr=1.0, momentum=0.5, weight_decay=0.25, wd_ratio=0.2, compile=compile).step()
    assert w.tolist() == [[-3.0, -4.0, -5.0], [0.9, -1.0, -2.0]]


def test_vectors_are_only_decayed_and_by_the_whole_decay():
    w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    w.grad = torch.tensor([0.0, 1.0], dtype=torch.float64)
    optim.SGDP([w], lr=0.1, momentum=0.5, weight_decay=0.5).step()
    assert w.tolist() == pytest.approx([1 - 0.1 * 0.5 / 0.5, -0.1])


@pytest.mark.parametrize("shape", [(3, 2), (4,)])
def test_a_groups_momentum_divides_its_decay(shape):
    w, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    finals = []
    for group, own in (({"momentum": 0.5}, {}), ({}, {"momentum": 0.5})):
        p = nn.Parameter(w.clone())
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, **own}
        optimizer = optim.SGDP([{"params": [p], **group}], **settings)
        for _ in range(3):
            p.grad = g
            optimizer.step()
        finals.append(p.detach())
    assert torch.equal(*finals)


def test_a_chunked_eager_step_equals_a_compiled_one():
    """Of 300 rows of 700, more than an eager pass takes at a time, one leans or none does."""
    for lean in (False, True):
        w = torch.randn(300, 700)
        g = torch.randn(300, 700)
        g -= (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
        g[299] += lean * w[299]
        finals = []
        for compile in (False, True):
            p = nn.Parameter(w.clone())
            p.grad = g
            optim.AdamP([p], lr=0.1, weight_decay=0.5, compile=compile).step()
            finals.append(p.detach())
        torch.testing.assert_close(*finals, rtol=1e-6, atol=1e-6)
        reference = next(transcriptions_rows.adamp(w.double(), [g.double()], lr=0.1, weight_decay=0.5))
        torch.testing.assert_close(finals[0].double(), reference, rtol=1e-5, atol=1e-5)


def test_tangent_can_stand_behind_any_link():
    """Behind Lion's sign update, say: the step along a scale-invariant matrix is gone."""
    w = nn.Parameter(torch.randn(4, 8, dtype=torch.float64))
    before = w.detach().clone()
    g = torch.randn(4, 8, dtype=torch.float64)
    w.grad = g - (g * before).sum(1, keepdim=True) / before.square().sum(1, keepdim=True) * before
    optim.Descent([w], optim.lion(), optim.tangent(), lr=0.1).step()
    assert ((w.detach() - before) * before).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("transcription", ["adamp", "sgdp"])
def test_the_settings_of_the_trajectories_reach_all_regimes(transcription):
    """Of the tensors of two dimensions and more some steps are projected, some are not."""
    weights, steps = weights_and_gradients(torch.float64)
    formula = getattr(transcriptions_rows, transcription)
    path = transcribe(formula, weights, steps, lr=1e-3, delta=1.0)
    shares = []
    for index in (0, 2):
        for row, g in zip(path, steps[1:], strict=False):
            g = g[index]
            shares.append(transcriptions_rows.projected(row[index], g, g, 1.0, 0.1)[1])
    assert 10 < shares.count(0.1) < len(shares) - 10


def test_a_momentum_of_its_own_is_under_its_own_name():
    """Where no link before it has one, nothing else in the chain may take its value for its own."""
    w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    w.grad = torch.zeros_like(w)
    chain = optim.tangent(weight_decay=0.5, momentum=0.75), optim.momentum(0.9)
    optimizer = optim.Descent([w], *chain, lr=0.1)
    assert optimizer.defaults["tangent.momentum"] == 0.75
    assert optimizer.defaults["momentum"] == 0.9
    optimizer.step()
    assert w.tolist() == pytest.approx([1 - 0.1 * 0.5 / 0.25, 0.0])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_nesterov_adam_is_stable_up_to_its_limit(decay):
    """With the denominator held at 1, on a quadratic of curvature 1: 1% below shrinks, 1% above grows."""
    limit = optim.adam((decay, 0.0), nesterov=True).stability(Scalars({"betas": (decay, 0.0)}))
    for share, shrinks in ((0.99, True), (1.01, False)):
        w, m = 1.0, 0.0
        for _ in range(4000):
            m = decay * m + (1 - decay) * w
            w -= share * limit * (decay * m + (1 - decay) * w)
        assert (abs(w) < 1) == shrinks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@either_path
def test_a_gate_that_need_not_be_asked_again_changes_nothing(dtype, compile, monkeypatch):
    """Gradients that stop being tangent, and are so again: bit for bit what asking in every step gives."""
    w = torch.randn(160, 130, dtype=dtype)  # more than what runs packed with others
    tangent, free = (turned(w, [torch.randn_like(w) + w], [view])[0] for view in [(160, -1), None])
    steps = [[g] for g in [tangent] * 3 + [free] * 4 + [tangent] * 20 + [free] * 2]
    paths = []
    for sure in (15, 0):
        monkeypatch.setattr("thalweg.optim._item.SURE", sure)
        make = lambda params: optim.AdamP(params, lr=1e-6, weight_decay=0.3, compile=compile)  # noqa: E731
        paths.append(run(make, [w], steps))
    assert all(torch.equal(a, b) for (a,), (b,) in zip(*paths, strict=True))
