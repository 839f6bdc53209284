"""Deep linear networks (arXiv 1312.6120): do modes follow the formula, and what does depth cost?"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from thalweg import optim
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.theory import LinearModes, decoupled_weights, linear_modes, mode_curve

WIDTH, STRENGTHS, START = 8, (4.0, 2.0, 1.0), 1e-3
RATE, STEPS, EVERY = 1e-3, 6000, 50
UNITS, OUTPUTS, SHALLOW, DEEP = 16, 2, 2, 24
SCALES = tuple(2.0**k for k in range(1, -8, -1))  # learning rate times depth
MOST, ARRIVED = 2000, 0.01
ONE = grid(lr=(RATE,))

FOLLOWED = {"reproduced": at_least(20), "direction only": at_least(2), "not reproduced": otherwise}
AXES = ("steps", "strength of the second mode")
ARMS: dict[str, Any] = {
    "verdict": FOLLOWED,
    "baseline": Arm("single matrix", ONE),
    "method": Arm("formula", ONE),
    "references": (Arm("simulated", ONE),),
}


def followed(setting: str, how: str) -> Setting:
    return Setting(setting=setting, metric=f"as learning curves, {how}", worst=1.0, axes=AXES, **ARMS)


STUDY = Study(
    paper="deep-linear-exact",
    claim="The simulated strength of each mode follows the formula, and with orthogonal initial weights the "
    "steps to learn hardly grow with depth, while with scaled Gaussian ones they do.",
    setting="learning curves",
    metric="root mean square, over three modes and 6000 steps of gradient descent, of the predicted minus "
    "the simulated strength of a mode over its final one, two matrices (whatever is above 1 counts as 1): "
    "by the curve of a single matrix / by the formula",
    worst=1.0,
    axes=AXES,
    **ARMS,
    beside=(
        followed("learning curves of four matrices", "with four matrices"),
        followed(
            "small random weights", "from Gaussian weights of 0.01, with those after 500 steps as start"
        ),
        Setting(
            setting="steps by depth",
            metric="steps to 1% of the first loss with 24 matrices over steps with 2, each at the best of "
            "nine rates of at most 2000 steps (24 that never arrive counts as 1000): Gaussian / orthogonal "
            "initial weights",
            verdict={"reproduced": at_least(3), "direction only": at_least(1.2), "not reproduced": otherwise},
            worst=1e3,
            axes=("matrices", "steps to 1% of the first loss"),
            log_y=True,
            baseline=Arm("Gaussian", ONE),
            method=Arm("orthogonal", ONE),
        ),
    ),
    seeds=3,
    minutes=1,
    notes="Modes of strength 4, 2 and 1 in 8 dimensions, white inputs, full-batch gradient descent at 0.001 "
    "in float64; all modes begin at 0.001, at 0.01 with four matrices. Depth: a target of 2 x 16 with "
    "orthonormal rows, 16 units in every layer, loss half the squared distance; rates are 2^-7 to 2 over the "
    "number of matrices.",
)


def descend(made: list[np.ndarray], x: np.ndarray, y: np.ndarray, modes: LinearModes) -> np.ndarray:
    """Strengths of the modes every 50 steps of gradient descent, (rows, modes)."""
    params = [nn.Parameter(torch.tensor(one)) for one in made]
    inputs, targets = torch.tensor(x), torch.tensor(y)
    optimizer = optim.SGD(params, lr=RATE)
    rows = [modes.measured(params)]
    for step in range(1, STEPS + 1):
        outputs = inputs
        for weight in params:
            outputs = outputs @ weight.T
        optimizer.zero_grad()
        (0.5 * (targets - outputs).square().sum()).backward()
        optimizer.step()
        if step % EVERY == 0:
            rows.append(modes.measured(params))
    return np.array(rows)


@cache  # all arms judge the same run
def simulated(setting: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Final strengths of the modes, and theirs on the way, (rows, modes)."""
    depth = 4 if "four" in setting else 2
    random = np.random.default_rng(seed)
    inputs, left, right = (np.linalg.qr(random.standard_normal((n, WIDTH)))[0] for n in (32, WIDTH, WIDTH))
    targets = inputs @ (left[:, :3] * STRENGTHS @ right[:, :3].T).T
    modes = linear_modes(inputs, targets)
    if setting == "small random weights":
        made = [0.01 * random.standard_normal((WIDTH, WIDTH)) for _ in range(depth)]
    else:
        made = decoupled_weights(modes, [WIDTH] * (depth - 1), START if depth == 2 else 10 * START, seed=seed)
    return modes.strengths, descend(made, inputs, targets, modes)


def curves(setting: str, arm: str, seed: int) -> Trial:
    strengths, found = simulated(setting, seed)
    first = 500 // EVERY if setting == "small random weights" else 0
    found, at = found[first:], np.arange(first, len(found)) * EVERY
    predicted = found
    if arm != "simulated":
        depth = 1 if arm == "single matrix" else 4 if "four" in setting else 2
        # A mode that begins backwards is outside the formula's range: it begins at next to nothing.
        starts = [max(start, 1e-12) for start in found[0]]
        pairs = zip(strengths, starts, strict=True)
        both = [mode_curve(s, u, at - at[0], depth=depth, tau=1 / RATE) for s, u in pairs]
        predicted = np.stack(both, axis=1)
    error = float(np.sqrt(np.mean(((predicted - found) / strengths) ** 2)))
    spec = dict(optim.spec(optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)))
    return Trial(error, spec, (at.tolist(), predicted[:, 1].tolist()))


def steps_to_learn(arm: str, depth: int, seed: int) -> float:
    """Fewest over the rates; infinite where none arrives."""
    source = torch.Generator().manual_seed(seed)
    drawn = torch.randn(depth + 1, UNITS, UNITS, generator=source)
    orthogonal = torch.linalg.qr(drawn)[0]
    target = orthogonal[-1, :OUTPUTS]
    first = orthogonal[:-1] if arm == "orthogonal" else drawn[:-1] / UNITS**0.5
    fewest = math.inf
    for scale in SCALES:
        hidden, last = nn.Parameter(first[:-1].clone()), nn.Parameter(first[-1, :OUTPUTS].clone())
        optimizer = optim.SGD([hidden, last], lr=scale / depth)
        begun = None
        for step in range(int(min(fewest, MOST))):
            product = torch.linalg.multi_dot((last, *hidden.flip(0)))
            loss = 0.5 * (target - product).square().sum()
            begun = begun or loss.item()
            if loss.item() < ARRIVED * begun:
                fewest = step
            if not ARRIVED * begun <= loss.item() < 100 * begun:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return fewest


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if setting != "steps by depth":
        return curves(setting, arm, seed)
    found = [steps_to_learn(arm, depth, seed) for depth in (SHALLOW, DEEP)]
    spec = dict(optim.spec(optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)))
    numbers = {f"steps with {depth} matrices": n for depth, n in zip((SHALLOW, DEEP), found, strict=True)}
    return Trial(found[1] / found[0], spec, ((SHALLOW, DEEP), found), numbers)
