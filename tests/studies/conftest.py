"""A miniature study in a folder of its own: a quadratic, two learning rates, three seeds, milliseconds."""

import pytest

TOY = '''
"""A toy: does gradient descent with a larger step come nearer to zero?"""

import torch

from thalweg import optim
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise

RULES = {"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise}

STUDY = Study(
    paper="toy-quadratic",
    claim="A larger step gets further.",
    setting="tuned",
    metric="distance from zero after 10 steps (at most 100; a diverged run counts as 100): small / large",
    verdict=RULES,
    worst=100.0,
    axes=("steps", "distance"),
    baseline=Arm("small", grid(lr=(0.01, 0.02))),
    method=Arm("large", grid(lr=(0.1, 5.0))),
    references=(Arm("none", grid(lr=(0.0, 1e-9))),),
    beside=(
        Setting(
            setting="far too large",
            metric="as above, with a step that diverges",
            verdict=RULES,
            worst=100.0,
            axes=("steps", "distance"),
            baseline=Arm("small", grid(lr=(0.01,))),
            method=Arm("large", grid(lr=(1e30,))),
        ),
    ),
    seeds=3,
    minutes=0.01,
    notes="A toy.",
)


def run(setting, arm, seed, lr):
    x = torch.nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(seed)))
    optimizer = optim.SGD([x], lr=lr)
    spec = optim.spec(optimizer)
    norms = [x.norm().item()]
    for _ in range(10):
        optimizer.zero_grad()
        (x * x).sum().backward()
        optimizer.step()
        norms.append(x.norm().item())
    return Trial(norms[-1], spec, (range(11), norms), {"start": norms[0]})
'''


@pytest.fixture
def toys(tmp_path):
    """A folder with one study; dropping the file there is all that is done."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "toy_quadratic.py").write_text(TOY)
    return folder
