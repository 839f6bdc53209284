"""A small training run for the run pages: ``python training.py STORE STEPS BAD PAUSE``."""

import sys
import time

import torch
from torch import nn

import thalweg


def toy(store, steps, bad, pause):
    """Fit a line, ``pause`` seconds a step; at step ``bad`` the loss is not a number, which is a finding."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    # Steps of so small a model pay for no readings but the loss; here all of them are wanted.
    with thalweg.watch(model, optimizer, store=store, name="toy", budget=10.0) as run:
        for step in range(1, steps + 1):
            batch = torch.randn(16, 4)
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            run.log(loss=float("nan") if step == bad else loss)
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(pause)


if __name__ == "__main__":
    toy(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
