"""Under a GradScaler gradients are read without its scale, also where the optimizer undoes it in its step."""

import math

import pytest
import torch

import thalweg
from thalweg.watch import RunStore

OPTIMIZERS = {
    "unscaled by the scaler": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "fused AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "fused SGD": lambda params: torch.optim.SGD(params, lr=1e-2, fused=True),
}


def norms_of(path):
    with RunStore(path) as store:
        return {one.step: one for one in store.readings(1, "gradient norm")}


def train(small, opt, scaler, steps, run, *, clip=False, spoil=()):
    """The loop of torch's documentation; gives the true gradient norm of each step that is not skipped."""
    true = []
    for step in range(1, steps + 1):
        loss = small.loss_fn(small.model, small.whole)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        if clip:
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(small.model.parameters(), 0.1)
            scale = 1.0
        if step in spoil:
            small.model[0].weight.grad[0, 0] = math.inf
        run.log(loss=loss, batch=small.whole)
        true.append(math.hypot(*(p.grad.double().norm().item() / scale for p in small.model.parameters())))
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    return true


@pytest.mark.parametrize("clip", [False, True], ids=["plain", "unscaled and clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_norm_is_that_of_the_unscaled_gradient(small, tmp_path, name, clip):
    opt = OPTIMIZERS[name](small.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    with thalweg.watch(small.model, opt, budget=1e9, store=tmp_path / "s") as run:
        true = train(small, opt, scaler, 12, run, clip=clip)
    assert scaler.get_scale() > 2.0**12  # it grew on the way
    found = norms_of(tmp_path / "s")
    assert list(found) == list(range(2, 13))
    assert [one.value for one in found.values()] == pytest.approx(true[1:], rel=1e-5)
    for one in found.values():
        assert math.hypot(*one.layers.values()) == pytest.approx(one.value, rel=1e-5)
    if clip:
        assert max(true) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_overflowed_and_is_skipped_is_no_divergence(small, tmp_path, name):
    opt = OPTIMIZERS[name](small.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with thalweg.watch(small.model, opt, budget=1e9, store=tmp_path / "s") as run:
        train(small, opt, scaler, 12, run, spoil=(5, 9))
    assert scaler.get_scale() == 2.0**10  # halved twice
    assert run.findings == [] and run.disabled == {}
    assert all(one.finite for one in norms_of(tmp_path / "s").values())
    # A fused optimizer's step is called and does nothing; otherwise it is not called at all.
    assert run.step == (12 if "fused" in name else 10)


def test_a_scaler_changes_nothing_about_what_watching_changes(make_small):
    """Nothing, bit for bit."""
    weights = []
    for watched in (False, True):
        small = make_small()
        opt = OPTIMIZERS["fused AdamW"](small.model.parameters())
        scaler = torch.amp.GradScaler("cpu")
        options = {"loss_fn": small.loss_fn, "budget": 1e9, "store": None}
        run = thalweg.watch(small.model, opt, **options)
        if not watched:
            run.close()
        train(small, opt, scaler, 30, run if watched else Silent())
        run.close()
        weights.append([*small.model.state_dict().values(), scaler.get_scale()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


class Silent:
    def log(self, **numbers):
        """A loop without a run."""
