"""Code to paste, executed where it is pasted: beside the loop of the README."""

import pytest
import torch
from torch import nn

from thalweg.papers.entry import load
from thalweg.papers.status import status

USED = {entry.key: entry.usage for entry in load() if entry.usage}


def beside_the_loop():
    """What stands around pasted code: a classifier of 64 numbers, its optimizer, and batches of 32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    loader = [(torch.randn(32, 64), torch.randint(10, (32,))) for _ in range(4)]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return {
        "torch": torch,
        "model": model,
        "loader": loader,
        "batch": loader[0],
        "loss_fn": loss_fn,
        "opt": opt,
    }


@pytest.mark.parametrize("key", USED)
def test_code_to_paste_runs_and_the_loop_goes_on_with_it(key):
    around = beside_the_loop()
    exec(compile(USED[key], f"{key}.toml", "exec"), around)
    model, opt, loss_fn = around["model"], around["opt"], around["loss_fn"]
    used = {id(p) for group in opt.param_groups for p in group["params"]}
    if {id(p) for p in model.parameters()} <= used and callable(getattr(model, "forward", None)):
        for batch in around["loader"]:

            def closure(batch=batch):
                opt.zero_grad()
                loss = loss_fn(model, batch)
                loss.backward()
                return loss

            assert torch.isfinite(torch.as_tensor(opt.step(closure)))


@pytest.mark.parametrize("key", USED)
def test_code_to_paste_uses_a_part_of_the_paper(key):
    entry = next(one for one in load() if one.key == key)
    assert any(part.rpartition(".")[2] in entry.usage for part in entry.parts)
    assert max(len(line) for line in entry.usage.splitlines()) <= 100
    assert len(entry.usage.splitlines()) <= 14


def test_every_working_paper_has_code_to_paste():
    assert [one.key for one in load() if one.parts and not one.usage and status(one).state == "working"] == []
