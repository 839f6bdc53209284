"""SAM against closed forms, another implementation, and its own edge of stability."""

import math

import pytest
import pytorch_optimizer
import torch
from torch import nn
from toys import assert_near, equal, loss_of, net, weights
from wrapped import BASES, closure_for, run

from thalweg import optim
from thalweg.probe import sharpness

SHAPES = [(4, 3), (5,), (1,)]


def bowl(seed=0):
    """Parameters and a quadratic loss that couples them: half of w'Hw with H of full rank."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    size = sum(p.numel() for p in params)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
    return params, root @ root.T


def value(params, hessian):
    w = torch.cat([p.flatten() for p in params])
    return w @ hessian @ w / 2


def flat(params):
    return torch.cat([p.detach().flatten() for p in params])


def one_step(optimizer, params, hessian):
    def closure():
        optimizer.zero_grad()
        loss = value(params, hessian)
        loss.backward()
        return loss

    optimizer.step(closure)
    return flat(params)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_step_on_a_quadratic_is_the_formula(adaptive, normalized):
    params, hessian = bowl()
    optimizer = optim.SAM(optim.SGD(params, lr=0.1), 0.3, adaptive, normalized, floor=0.02)
    for _ in range(5):
        w = flat(params)
        g = hessian @ w
        stretch = w.abs() + 0.02 if adaptive else torch.ones_like(w)
        e = 0.3 * stretch**2 * g / ((stretch * g).norm() if normalized else 1)
        expected = w - 0.1 * hessian @ (w + e)
        torch.testing.assert_close(one_step(optimizer, params, hessian), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_radius_zero_is_the_base_bit_for_bit(base, adaptive, normalized):
    model, reference = net(), net()
    plain = BASES[base](reference.parameters())
    run(model, optim.SAM(BASES[base](model.parameters()), 0.0, adaptive, normalized), range(8))
    for step in range(8):
        closure_for(plain, reference, step)()
        plain.step()
    assert equal(weights(model), weights(reference))


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_follows_pytorch_optimizer(adaptive):
    """Without a floor, which 4.1 does not have. It adds up the norm in float32 whatever the weights are:
    that is the tolerance. Its closure is the second pass alone."""
    model, reference = net(torch.float64), net(torch.float64)
    ours = optim.SAM(optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.2, adaptive, floor=0.0)
    theirs = pytorch_optimizer.SAM(
        reference.parameters(), torch.optim.SGD, rho=0.2, adaptive=adaptive, lr=0.1, momentum=0.9
    )
    run(model, ours, range(30))
    for step in range(30):
        closure = closure_for(theirs, reference, step)
        closure()
        theirs.step(closure)
    assert_near(weights(model), weights(reference), 1e-5)


def test_the_move_has_the_radius_and_the_weights_come_back_bit_for_bit():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = net(dtype)
        optimizer = optim.SAM(optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0), radius=0.5)
        before = weights(model)
        loss_of(model, 0).backward()
        optimizer.ascend()
        moves = [a - b for a, b in zip(weights(model), before, strict=True)]
        length = math.sqrt(sum(m.double().square().sum().item() for m in moves))
        assert length == pytest.approx(0.5, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
        for m, p in zip(moves, model.parameters(), strict=True):
            alignment = nn.functional.cosine_similarity(m.flatten().double(), p.grad.flatten().double(), 0)
            assert alignment > (0.99 if dtype == torch.bfloat16 else 1 - 1e-6)
        optimizer.step()
        assert equal(weights(model), before)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("gradient", [0.0, math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_zero_or_not_finite_moves_nothing(gradient, normalized):
    w = nn.Parameter(torch.ones(3))
    optimizer = optim.SAM(optim.SGD([w], lr=0.1), normalized=normalized)
    w.grad = torch.full((3,), gradient)
    optimizer.ascend()
    assert torch.equal(w.detach(), torch.ones(3))
    w.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.9))


def test_a_loss_that_was_scaled_is_told_to_the_form_without_norm():
    for normalized in (False, True):
        params, hessian = bowl()
        scaled, plain = ([nn.Parameter(p.detach().clone()) for p in params] for _ in range(2))
        for given, factor in ((scaled, 64.0), (plain, 1.0)):
            (factor * value(given, hessian)).backward()
            optim.SAM(optim.SGD(given), normalized=normalized).ascend(scale=factor)
        torch.testing.assert_close(flat(scaled), flat(plain), rtol=1e-12, atol=0)


def normed(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


def statistics(model):
    return [b.clone() for b in model.buffers()]


def test_running_statistics_advance_once_if_the_model_is_given_or_frozen_by_hand():
    found = []
    for way in ("model", "by hand", "neither", "one pass"):
        model = normed()
        inner = optim.SGD(model.parameters(), lr=0.1)
        optimizer = optim.SAM(inner, radius=0.5, model=model if way == "model" else None)
        closure = closure_for(optimizer, model, 0)
        if way == "one pass":
            closure()
        elif way == "by hand":
            closure()
            optimizer.ascend()
            with optim.frozen_statistics(model):
                closure()
            optimizer.step()
        else:
            optimizer.step(closure)
        found.append(statistics(model))
    model, by_hand, neither, once = found
    assert equal(model, once) and equal(by_hand, once)
    assert neither[-1] == 2 and once[-1] == 1  # batches counted


def test_a_buffer_that_is_replaced_rather_than_written_is_put_back_too():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + 1
            return x

    model = Counting()
    with pytest.raises(KeyError), optim.frozen_statistics(model):
        model(torch.ones(1))
        raise KeyError
    assert model.seen == 0


@pytest.mark.parametrize("same", [False, True])
def test_dropout_masks_are_those_of_the_first_pass_if_asked(same):
    model = normed()
    optimizer = optim.SAM(optim.SGD(model.parameters(), lr=0.1), radius=0.0, same_masks=same)
    masks = []
    model[2].register_forward_hook(lambda module, given, out: masks.append(out.detach() == 0))
    optimizer.step(closure_for(optimizer, model, 0))
    assert torch.equal(masks[0], masks[1]) == same
    optimizer.step(closure_for(optimizer, model, 0))
    assert not torch.equal(masks[1], masks[2])  # the stream of random numbers goes on


def test_it_ascends_once():
    params, hessian = bowl()
    optimizer = optim.SAM(optim.SGD(params))
    value(params, hessian).backward()
    optimizer.ascend()
    with pytest.raises(RuntimeError, match=r"ascend\(\) was called already"):
        optimizer.ascend()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": -0.1}, r"radius must be in \[0, inf\), got -0.1"),
        ({"floor": math.nan}, "floor must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.SAM(optim.SGD([nn.Parameter(torch.ones(1))]), **arguments)


# At rate 0.25 and radius 0.2 rounding decides whether it diverges on its way: on some processors it does.
@pytest.mark.parametrize(("lr", "radius"), [(0.5, 0.0), (0.5, 0.05), (0.25, 0.1), (0.2, 0.2)])
def test_full_batch_sam_settles_at_its_own_edge_of_stability(lr, radius):
    """Where lr lambda (1 + radius lambda) = 2, from learning rate and radius alone (arXiv 2302.08692)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True).sin()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
        ).double()
    optimizer = optim.SAM(optim.SGD(model.parameters(), lr=lr), radius, normalized=False)

    def loss():
        return (model(x) - y).square().mean() / 2

    def closure():
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    for _ in range(1500):
        optimizer.step(closure)
    predicted = (math.sqrt(1 + 8 * radius / lr) - 1) / (2 * radius) if radius else 2 / lr
    found = sharpness(loss, model.parameters(), iterations=60, tol=1e-4).top
    assert found == pytest.approx(predicted, rel=0.03)
