"""Code to paste, executed where it is pasted: in the loop of README, with no names but those of that loop."""

import re

import pytest
import torch
from torch import nn

from readme_loop import paste
from thalweg.papers.entry import load
from thalweg.papers.status import status

USED = {entry.key: entry.usage for entry in load() if entry.usage}
CONVOLUTIONS = ("batch-channel-norm", "ghost-batch-norm")


class Sequence(nn.Module):
    """64 numbers as 16 steps of 4, into an LSTM."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.last = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.recurrent(x.unflatten(1, (16, 4)))[0][:, -1])


def model_for(key):
    """A classifier of 64 numbers; for code that converts layers, one that has them."""
    torch.manual_seed(0)
    if key in CONVOLUTIONS:
        image = nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        return nn.Sequential(*image, nn.Flatten(), nn.Linear(288, 10))
    if key == "layer-norm":
        return Sequence()
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


def run(key, count=4):
    """README's loop with the code in it: the names at its end, and every step's optimizer, rates and loss."""
    model = model_for(key)
    batches = [(torch.randn(32, 64), torch.randint(0, 10, (32,))) for _ in range(4)]
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return paste(USED[key], model, opt, (batches * count)[:count], after=True)


@pytest.mark.parametrize("key", USED)
def test_code_to_paste_runs_in_the_loop_of_the_readme_which_trains_on_with_it(key):
    names, steps = run(key)
    model, opt = names["model"], names["opt"]
    stepped = [one for one, _, _ in steps if one in (opt, getattr(opt, "inner", opt))]
    assert len(stepped) >= 3
    used = {id(p) for group in opt.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} <= used
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("key", USED)
def test_what_has_to_be_stepped_is_stepped_by_the_code_itself(key):
    names, _ = run(key)
    for name, one in names.items():
        if callable(getattr(one, "step", None)) and not isinstance(one, (torch.optim.Optimizer, type)):
            assert name == "run" or f"    {name}.step()" in USED[key]


@pytest.mark.parametrize("key", USED)
def test_nothing_that_was_measured_or_made_is_dropped(key):
    code = USED[key]
    for line in re.sub(r"#.*", "", code).splitlines():
        # A call on a line of its own that gives something back would be lost.
        assert not re.match(r"[a-z_]+\(.*\)$", line) or line.startswith(("print(", "reset_", "project_"))
    for name in re.findall(r"^(loss|logits) = ", code, re.MULTILINE):
        assert f"{name}.backward()" in code


def rates(key, count):
    _, steps = run(key, count)
    return torch.tensor([rates[0] for _, rates, _ in steps], dtype=torch.float64)


def test_the_rate_of_super_convergence_rises_to_the_peak_and_falls_within_the_run():
    seen = rates("super-convergence", 1000)
    assert seen[0] == pytest.approx(0.05) and seen[450] == pytest.approx(0.5)
    assert seen.argmax() == 450 and seen[900] == pytest.approx(0.05) and seen[-1] < 0.001


def test_the_rate_of_sgdr_falls_along_a_cosine_and_jumps_back():
    seen = rates("sgdr", 1500)
    assert seen[500] == pytest.approx(0.5e-3) and seen[999] < 1e-8
    # The second cycle takes twice as many steps.
    assert seen[1000] == pytest.approx(1e-3) and 0.8e-3 < seen[1499] < 0.9e-3


def test_the_refined_rate_warms_up_to_the_optimizers_own_and_falls_to_zero():
    seen = rates("schedule-refinement", 1000)
    assert seen[0] < 0.2e-3 and seen.max() == pytest.approx(1e-3, rel=1e-4) and seen[-1] == 0
    assert 20 < seen.argmax() < 500 and (seen.diff()[seen.argmax() :] <= 1e-12).all()


@pytest.mark.parametrize("key", ["gradient-starvation", "small-scale-proxies"])
def test_a_penalty_is_in_the_loss_that_the_loop_then_takes(key):
    names, steps = run(key)
    inputs, targets = names["batch"]
    logits = 100 * torch.ones_like(names["model"](inputs))
    loss = names["loss_fn"](lambda _: logits, (inputs, targets))
    assert loss > nn.functional.cross_entropy(logits, targets) + 0.5 and len(steps) == 4


def test_dormant_units_are_reset_within_the_loop():
    model = model_for("dormant-neurons")
    with torch.no_grad():
        model[0].bias[5] = -1000
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    paste(USED["dormant-neurons"], model, opt, [(torch.randn(32, 64), torch.zeros(32).long())] * 3)
    assert model[0].bias[5].abs() < 1


@pytest.mark.parametrize("key", USED)
def test_code_to_paste_uses_a_part_of_the_paper(key):
    entry = next(one for one in load() if one.key == key)
    assert any(part.rpartition(".")[2] in entry.usage for part in entry.parts)
    assert max(len(line) for line in entry.usage.splitlines()) <= 100
    assert len(entry.usage.splitlines()) <= 14


def test_every_working_paper_has_code_to_paste():
    assert [one.key for one in load() if one.parts and not one.usage and status(one).state == "working"] == []
