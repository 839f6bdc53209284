"""What the optimizer tests found, as tables: ``runs/optimizer-checks.md``, quoted in docs/optimizers.md.

Parity: how far each recipe's path over 120 steps is from its references, at worst. Conformance: how many
tests of each kind every recipe passed.
"""

import random
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
# The same examples in every run, and no clock: a busy machine is slow, which says nothing of what is tested.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
ROOM = re.compile(r"tests/optim/test_(\w+)\.py::(\w+)\[(.*)\]")
WRAPPERS = ("SAM", "ASAM", "unnormalised", "forward", "backward", "exact", "Average", "XGrad")
parity: dict = defaultdict(dict)
conformance: dict = defaultdict(lambda: defaultdict(lambda: [0, 0]))
wrapped: dict = defaultdict(lambda: defaultdict(lambda: [0, 0]))


@pytest.fixture
def process_group():
    """This process alone as a gloo group, left when the test's models are gone.

    A DistributedDataParallel that is the last to hold a group ends it without letting go of the interpreter,
    for which a thread of gloo may wait that lets go of a reduction's tensors: both wait for ever then.
    """
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Every test draws the same numbers, whichever tests this process has run before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    # What was compiled for the model of an earlier test is taken for an equal one, whose hooks are not seen.
    # Kernels of optimizers are meant to be taken again.
    if "torch._dynamo" in sys.modules and not item.nodeid.startswith("tests/optim/"):
        sys.modules["torch._dynamo"].reset()


def pytest_runtest_logreport(report):
    match = ROOM.fullmatch(report.nodeid)
    if report.when != "call" or match is None:
        return
    file, _, case = match.groups()
    for name, value in report.user_properties:
        if name == "parity":
            recipe, dtype, worst = value
            parity[recipe][dtype] = max(worst, parity[recipe].get(dtype, 0.0))
    if file.startswith("wrapper"):
        kind = {"wrappers": "contract"}.get(file, file.removeprefix("wrappers_").removeprefix("wrapper_"))
        for part in case.split("-"):
            wrapped[part][kind][0] += report.passed
            wrapped[part][kind][1] += 1
    if file.startswith("conformance") or file in ("distributed", "bad_gradients"):
        for part in case.split("-"):
            conformance[part][file.removeprefix("conformance_")][0] += report.passed
            conformance[part][file.removeprefix("conformance_")][1] += 1


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput") or not parity:
        return
    from thalweg import optim

    recipes = optim.list_recipes()
    lines = ["| recipe | float32 | float64 |", "|---|---|---|"]
    for recipe in sorted(parity):
        found = parity[recipe]
        lines.append(f"| {recipe} | {found.get('float32', 0):.0e} | {found.get('float64', 0):.0e} |")
    wrappers = [name for name in sorted(wrapped) if name.startswith(WRAPPERS)]
    lines += ["", *_passed("recipe", recipes, conformance), "", *_passed("wrapper", wrappers, wrapped)]
    folder = Path(session.config.rootpath) / "runs"
    folder.mkdir(exist_ok=True)
    (folder / "optimizer-checks.md").write_text("\n".join(lines) + "\n")


def _passed(title, names, counts):
    """A table of tests passed of those that apply: a row a name, a column a kind of test."""
    kinds = sorted({kind for name in names for kind in counts[name]})
    yield f"| {title} | {' | '.join(kinds)} |"
    yield "|---" * (len(kinds) + 1) + "|"
    for name in names:
        cells = (f"{passed}/{tried}" if tried else "" for passed, tried in (counts[name][k] for k in kinds))
        yield f"| {name} | {' | '.join(cells)} |"
