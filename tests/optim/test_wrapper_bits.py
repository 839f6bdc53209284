"""Every wrapper around a chain of ours: compiled equals eager, and bfloat16 weights under each rounding."""

import pytest
import torch
from torch import nn
from toys import assert_near, net, weights
from wrapped import AROUND, run

from thalweg import optim


def AdamW(params, lr=0.01, **arguments):
    return optim.AdamW(params, lr=lr, **arguments)


def SGD(params, lr=0.05, **arguments):
    return optim.SGD(params, lr=lr, momentum=0.9, **arguments)


def around(wrap, base):
    return lambda params, **arguments: wrap(base(params, **arguments))


def predicting(base, **own):
    return lambda params, **arguments: optim.XGrad(params, base=base, **{**own, **arguments})


MADE = {
    f"{name} around {base.__name__}": around(AROUND[name], base) for name in AROUND for base in (AdamW, SGD)
}
MADE |= {"XGrad adamw": predicting("adamw", lr=0.01), "XGrad sgd": predicting("sgd", lr=0.05)}
every_one = pytest.mark.parametrize("name", MADE)


@every_one
@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_inside_equals_the_eager_one_and_no_schedule_recompiles_it(name):
    def trained(compile, steps=8):
        model = net()
        optimizer = MADE[name](model.parameters(), compile=compile)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.cosine(steps=10, warmup=2))
        run(model, optimizer, range(steps), after=scheduler.step)
        return weights(model)

    trained(True, steps=2)
    compiled_so_far = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled_so_far > 0
    assert_near(trained(True), trained(False))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_so_far


class Slope(nn.Module):
    """A loss that is linear in its weights: its gradient is the same wherever a wrapper moves them to."""

    def __init__(self, dtype):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4096, dtype=dtype))
        self.signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat(2048)

    def forward(self):
        return (self.w * self.signs).sum()


@every_one
def test_small_steps_are_lost_to_nearest_rounding_and_kept_by_the_other_two(name):
    """150 steps of about 1e-4 from 1, as for every recipe; what a wrapper moved comes back to the bit."""
    rate = 1e-5 if "sgd" in name.lower() else 1e-4  # momentum makes steps ten times as large

    def moved(dtype, **arguments):
        model = Slope(dtype)
        optimizer = MADE[name](model.parameters(), lr=rate, **arguments)

        def closure():
            optimizer.zero_grad()
            loss = model()
            if getattr(optimizer, "mode", None) != "exact":
                loss.backward()
            return loss

        for _ in range(150):
            optimizer.step(closure)
        return model.w.detach().float(), optimizer.state[model.w]

    exact, _ = moved(torch.float32)
    assert (exact - 1).abs().min() > 0.01
    nearest, _ = moved(torch.bfloat16)
    assert nearest.eq(1).all()
    stored, state = moved(torch.bfloat16, rounding="kahan")
    assert (stored + state["kahan"].float() - exact).abs().max() < 1e-3
    rounded, _ = moved(torch.bfloat16, rounding="stochastic")
    signs = Slope(torch.float32).signs
    assert rounded.unique().numel() > 4
    for sign in (1.0, -1.0):
        mean = exact[signs == sign].mean().item()
        assert rounded[signs == sign].mean().item() == pytest.approx(mean, abs=2e-3)
