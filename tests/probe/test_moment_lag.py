"""g^2/v against the second moment that torch's own optimizers hold once they have made the step."""

import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.probe import second_moment_lag

OPTIMIZERS = {
    "Adam": lambda ps: torch.optim.Adam(ps, lr=1e-2, betas=(0.9, 0.99)),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-2, alpha=0.9),
    "thalweg AdamW": lambda ps: optim.AdamW(ps, lr=1e-2),
    "thalweg chain": lambda ps: optim.Descent(
        ps, optim.clip_norm(1e9), optim.adam(betas=(0.9, 0.95)), lr=1e-2
    ),
}
DECAYS = {"Adam": 0.99, "AdamW": 0.999, "RMSprop": 0.9, "thalweg AdamW": 0.999, "thalweg chain": 0.95}


def trained(name, steps=7, grown=20.0):
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    opt = OPTIMIZERS[name](list(model.parameters()))
    for step in range(steps):
        times = grown if step == steps - 1 else 1.0
        for p in model.parameters():
            p.grad = times * torch.randn(p.shape)
        if step < steps - 1:
            opt.step()
    return model, opt


def square(opt, p):
    (key,) = [key for key in opt.state[p] if "sq" in key]
    return opt.state[p][key].double()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_mean_of_the_squared_gradient_over_what_the_step_divides_by(name):
    model, opt = trained(name)
    params = dict(model.named_parameters())
    found = second_moment_lag(opt, params)
    gradients = {key: p.grad.clone().double() for key, p in params.items()}
    opt.step()
    correction = 1.0 if name == "RMSprop" else 1 - DECAYS[name] ** 7
    ratios = {key: gradients[key] ** 2 / (square(opt, p) / correction) for key, p in params.items()}
    assert {key: r.mean().item() for key, r in ratios.items()} == pytest.approx(found.per_layer, rel=1e-4)
    entries = torch.cat([r.flatten() for r in ratios.values()])
    assert found.ratio == pytest.approx(entries.mean().item(), rel=1e-4)
    # Only an RMSprop that forgets within ten steps has caught up with a gradient 20 times as large.
    assert found.ratio > (3 if name != "RMSprop" else 1)


def test_steady_gradients_give_one():
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(2000))
    opt = torch.optim.Adam([p], lr=0.0, betas=(0.9, 0.99))
    for _ in range(600):
        p.grad = torch.randn(2000)
        opt.step()
    p.grad = torch.randn(2000)
    assert second_moment_lag(opt, {"p": p}, entries=2000).ratio == pytest.approx(1.0, abs=0.1)


def test_a_part_of_the_entries_misses_no_column_and_no_row():
    p = nn.Parameter(torch.zeros(128, 96))
    opt = torch.optim.Adam([p], lr=0.0)
    for _ in range(50):
        p.grad = torch.ones(128, 96)
        opt.step()
    quiet = second_moment_lag(opt, {"p": p}, entries=512).ratio
    assert quiet == pytest.approx(1.0, rel=1e-3)
    for place in ((slice(None), 17), (40, slice(None))):
        p.grad = torch.ones(128, 96)
        p.grad[place] = 100.0
        whole = second_moment_lag(opt, {"p": p}, entries=10**6).ratio
        assert second_moment_lag(opt, {"p": p}, entries=1024).ratio == pytest.approx(whole, rel=0.3)
        assert whole > 1.2


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_the_size_of_all_gradients_does_not_matter_nor_does_a_loss_scale(size):
    p = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    opt = torch.optim.Adam([p], lr=0.0)
    for step in range(5):
        p.grad = size * (1 + step) * torch.linspace(-1, 1, 50, dtype=torch.float64)
        if step < 4:
            opt.step()
    decay, v = 0.999, 0.0
    for step in range(1, 6):
        v = decay * v + (1 - decay) * step**2
    expected = 25 / (v / (1 - decay**5))
    assert second_moment_lag(opt, {"p": p}).ratio == pytest.approx(expected, rel=1e-3)
    p.grad *= 1024
    assert second_moment_lag(opt, {"p": p}, scale=1024.0).ratio == pytest.approx(expected, rel=1e-3)


def test_an_optimizer_without_a_second_moment_is_an_error():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    opt = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    opt.step()
    with pytest.raises(ValueError, match="second moment"):
        second_moment_lag(opt, {"p": p})


@pytest.mark.parametrize(
    ("make", "key", "correction"),
    [
        (lambda ps: torch.optim.Adam(ps, betas=(0.9, 0.9), amsgrad=True), "max_exp_avg_sq", 1 - 0.9**9),
        (
            lambda ps: optim.Descent(ps, optim.amsgrad(betas=(0.9, 0.9)), lr=1e-3),
            "amsgrad.largest",
            1 - 0.9**9,
        ),
        (lambda ps: torch.optim.Adadelta(ps, rho=0.8), "square_avg", 1.0),
    ],
)
def test_the_largest_moment_counts_where_it_divides_and_each_kind_decays_as_it_does(make, key, correction):
    source = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(6, 5, generator=source))
    opt = make([p])
    for times in [1.0] * 4 + [9.0] + [0.3] * 4:
        p.grad = times * torch.randn(p.shape, generator=source)
        if times != 0.3 or int(opt.state[p]["step"]) < 8:
            opt.step()
    found = second_moment_lag(opt, {"p": p}).ratio
    square = p.grad.double() ** 2
    opt.step()
    assert found == pytest.approx(
        (square / (opt.state[p][key].double() / correction)).mean().item(), rel=1e-4
    )
    assert found < (0.5 if correction < 1 else 2)


def test_parameters_may_come_as_a_model_and_need_names():
    model, opt = trained("Adam")
    assert second_moment_lag(opt, model) == second_moment_lag(opt, dict(model.named_parameters()))
    with pytest.raises(ValueError, match=r"params must be a model.*got an entry of type Parameter"):
        second_moment_lag(opt, model.parameters())
