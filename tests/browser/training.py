"""A small training run for the run pages: ``python training.py STORE STEPS BAD``.

With 0 steps it trains until a file ``end`` lies beside the store; a file ``bad`` spoils one loss and goes.
"""

import itertools
import sys
import time
from pathlib import Path

import torch
from torch import nn

import thalweg


def toy(store, steps, bad):
    """Fit a line; at step ``bad``, or when told, the loss is not a number, which is a finding."""
    told_bad, told_end = store.with_name("bad"), store.with_name("end")
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    # Steps of so small a model pay for no readings but the loss; here all of them are wanted.
    with thalweg.watch(model, optimizer, store=store, name="toy", budget=1e9) as run:
        for step in itertools.count(1):
            batch = torch.randn(16, 4)
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            spoiled = step == bad or told_bad.exists()
            told_bad.unlink(missing_ok=True)
            run.log(loss=float("nan") if spoiled else loss)
            optimizer.step()
            optimizer.zero_grad()
            if step == steps or (not steps and told_end.exists()):
                break
            if not steps:
                time.sleep(0.02)


if __name__ == "__main__":
    toy(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
