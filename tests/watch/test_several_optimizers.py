"""One run of several optimizers: each is read before its own step, of its own parameters."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import RunStore

GENEROUS = 1e9


def stored(path, name):
    with RunStore(path) as store:
        return [(one.step, one.value) for one in store.readings(1, name)]


def norm(params):
    return math.hypot(*(p.grad.double().norm().item() for p in params))


def halves(small):
    """The hybrid of many language models: matrices and the rest under different optimizers."""
    matrices = [p for p in small.model.parameters() if p.ndim == 2]
    rest = [p for p in small.model.parameters() if p.ndim < 2]
    return torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(rest, lr=1e-3)


def test_two_optimizers_that_step_together_are_one_step_and_two_series(small, tmp_path):
    first, second = halves(small)
    wanted = []
    with thalweg.watch(small.model, [first, second], budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(10):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            wanted.append([norm(one.param_groups[0]["params"]) for one in (first, second)])
            run.log(loss=loss)
            first.step(), second.step()
            first.zero_grad(), second.zero_grad()
    assert run.step == 10 and not run.disabled
    for index, name in enumerate(("gradient norm", "gradient norm of AdamW")):
        found = dict(stored(tmp_path / "s", name))
        assert [step for step in found if step > 2] == list(range(3, 11))
        assert found == pytest.approx({step: wanted[step - 1][index] for step in found}, rel=1e-5)
    assert [step for step, _ in stored(tmp_path / "s", "loss")] == list(range(1, 11))
    # What is of the model and not of an optimizer is read once.
    assert {"dormant units", "sharpness of AdamW"} <= set(run.sensors)
    assert "dormant units of AdamW" not in run.sensors


def test_each_is_read_before_its_own_step_though_the_others_backward_comes_between(tmp_path):
    """As in adversarial training, where the generator's backward pass also reaches the discriminator."""
    torch.manual_seed(0)
    nets = nn.ModuleDict({"generator": nn.Linear(4, 4), "discriminator": nn.Linear(4, 1)})
    opts = {
        "generator": torch.optim.Adam(nets["generator"].parameters(), lr=1e-2),
        "discriminator": torch.optim.Adam(nets["discriminator"].parameters(), lr=1e-2),
    }
    wanted = {name: [] for name in opts}
    with thalweg.watch(nets, opts, budget=GENEROUS, store=tmp_path / "s") as run:
        for _ in range(10):
            noise, real = torch.randn(16, 4), torch.randn(16, 4) + 2
            fake = nets["generator"](noise)
            for name, loss in (
                ("discriminator", lambda: -score(nets, real) + score(nets, fake.detach())),  # noqa: B023
                ("generator", lambda: -score(nets, fake)),  # noqa: B023
            ):
                nets.zero_grad()
                loss().backward()
                wanted[name].append(norm(nets[name].parameters()))
                opts[name].step()
    assert run.step == 10
    for name, series in (("generator", "gradient norm"), ("discriminator", "gradient norm of discriminator")):
        found = dict(stored(tmp_path / "s", series))
        assert len(found) >= 8
        assert found == pytest.approx({step: wanted[name][step - 1] for step in found}, rel=1e-5)
    with RunStore(tmp_path / "s") as store:
        (info,) = store.runs()
        layers = store.readings(1, "gradient norm of discriminator")[0].layers
    assert set(layers) == {"discriminator.weight", "discriminator.bias"}
    assert info.about["optimizers"] == {"generator": "Adam", "discriminator": "Adam"}
    assert info.about["parameters"] == sum(p.numel() for p in nets.parameters())


def score(nets, examples):
    return F.softplus(nets["discriminator"](examples)).mean()


@pytest.mark.parametrize(
    ("order", "steps"),
    [
        ("ab" * 5, 5),  # one after the other
        ("aaab" * 3, 9),  # several of one for each of the other
        ("a" * 4 + "b" * 4, 7),  # the other after the first, one of them in the same step
        ("aaaa", 4),  # one that never steps
    ],
)
def test_a_step_ends_when_an_optimizer_that_stepped_in_it_steps_again(order, steps):
    opts = {name: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1) for name in "ab"}
    with thalweg.watch(None, opts, budget=0, store=None) as run:
        for name in order:
            opts[name].step()
    assert run.step == steps and run.budget.steps <= steps


def test_a_finding_says_which_optimizer_it_is_of_and_rules_know_each_ones_kind(tmp_path):
    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    opts = {"actor": torch.optim.Adam([params[0]], lr=0.3), "critic": torch.optim.SGD([params[1]], lr=0.7)}
    with thalweg.watch(None, opts, budget=GENEROUS, store=tmp_path / "s") as run:
        for step in range(1, 60):
            for index, p in enumerate(params):
                p.grad = torch.full_like(p, 1e4 if index == 1 and step == 50 else 1.0 + 0.01 * (step % 3))
            for opt in opts.values():
                opt.step()
    (finding,) = run.findings
    assert (finding.name, finding.step) == ("gradient spike", 50)
    assert finding.message.startswith("critic: gradient norm 1.73e+04 is")
    # The critic's SGD stays: a method of Adam's kind would need another learning rate.
    assert [one.title[:4] for one in finding.remedies] == ["clip"]


def test_sharpness_is_that_of_each_ones_own_parameters_and_limit(tmp_path):
    """The loss x^2 + 5 y^2, with x and y under different optimizers."""
    x, y = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    model = nn.ParameterDict({"x": x, "y": y})
    opts = [torch.optim.SGD([x], lr=0.1), torch.optim.SGD([y], lr=0.01, momentum=0.5)]

    def loss_fn(model, batch):
        return (model["x"] ** 2 + 5 * model["y"] ** 2).sum()

    options = {"loss_fn": loss_fn, "budget": GENEROUS, "store": tmp_path / "s"}
    with thalweg.watch(model, opts, **options) as run:
        for _ in range(60):
            loss = loss_fn(model, None)
            loss.backward()
            run.log(loss=loss, batch=torch.zeros(1))
            for opt in opts:
                opt.step()
                opt.zero_grad()
    assert not run.disabled
    with RunStore(tmp_path / "s") as store:
        first, second = (store.readings(1, name)[-1] for name in ("sharpness", "sharpness of SGD 2"))
    assert (first.value, first.extra["limit"]) == pytest.approx((2.0, 2 / 0.1), rel=1e-4)
    assert (second.value, second.extra["limit"]) == pytest.approx((10.0, 2 * 1.5 / 0.01), rel=1e-4)


@pytest.mark.parametrize(
    ("several", "words"),
    [
        ([], "one optimizer or several, got none"),
        (lambda opt, other: [opt, opt], "each optimizer once, got 'AdamW 2' a second time"),
        (lambda opt, other: [opt, "adam"], "must be a torch.optim.Optimizer, got str"),
        (lambda opt, other: {"a": opt, "b": other}, "must hold parameters of the model, got none"),
    ],
)
def test_what_is_no_set_of_optimizers_of_the_model_is_refused(small, several, words):
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    given = several(small.opt, other) if callable(several) else several
    with pytest.raises(ValueError, match=words):
        thalweg.watch(small.model, given, store=None)
    assert not small.opt._optimizer_step_pre_hooks and not small.model._forward_hooks
