"""Git Re-Basin (arXiv 2209.04836): are two runs joined by a flat line once their units are in one order?"""

from __future__ import annotations

from collections import defaultdict

from thalweg.studies._two_runs import aligned, line, runs
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise

LEAST = 1e-3  # nats: a barrier below counts as this
ONE = grid(lr=(1e-3,))
LINE = ("share of the way from one run to the other", "test loss (nats)")
FALLS = {"reproduced": at_least(10), "direction only": at_least(1.5), "not reproduced": otherwise}
AS_BEFORE = "as in the first setting"


def against_nothing(name: str, said: str, method: str = "weights matched", lr: float = 1e-3) -> Setting:
    return Setting(
        setting=name,
        metric=f"{AS_BEFORE}, {said}",
        verdict=FALLS,
        worst=100.0,
        axes=LINE,
        baseline=Arm("as trained", grid(lr=(lr,))),
        method=Arm(method, grid(lr=(lr,))),
    )


STUDY = Study(
    paper="git-rebasin",
    claim="With the hidden units of one run permuted into the order of another's, the loss barrier between "
    "the two nearly disappears, and it is lower the wider the networks.",
    setting="2 layers of 256",
    metric="barrier of the test loss on the line between two runs with other weights and batches, in nats "
    "(one below 0.001 counts as 0.001, a diverged run as 100): as trained / with weights matched",
    verdict=FALLS,
    worst=100.0,
    axes=LINE,
    baseline=Arm("as trained", ONE),
    method=Arm("weights matched", ONE),
    beside=(
        Setting(
            setting="width",
            metric=f"{AS_BEFORE}, with weights matched: two layers of 16 / two layers of 256",
            verdict={"reproduced": at_least(3), "direction only": at_least(1.2), "not reproduced": otherwise},
            worst=100.0,
            axes=LINE,
            baseline=Arm("16 wide", ONE),
            method=Arm("256 wide", ONE),
        ),
        against_nothing("6 layers of 128", "a deep network, narrow for its depth"),
        against_nothing(
            "by activations", "matched by activations on the training images", "activations matched"
        ),
        against_nothing(
            "residual",
            "a residual convolutional network with batch normalisation, whose statistics are gathered anew "
            "at every point",
            lr=0.1,
        ),
        against_nothing(
            "language model",
            "a transformer: its stream, heads, what is inside heads, and feed-forward layers matched",
            lr=4e-3,
        ),
    ),
    seeds=3,
    minutes=4,
    notes="1300 handwritten digits, 497 for testing; ReLU MLPs, Adam at 1e-3 falling linearly to 0, 1000 "
    "steps of 64; the residual network (two stages, 16 channels) SGD with momentum at 0.1, 150 steps; the "
    "language model has two layers of width 64 and 300 steps of Adam at 4e-3 on characters of Python's "
    "library. Lines have 25 points. Nothing is tuned: both arms judge the same two runs. The ascent starts "
    "from the order as trained, once. Sizes and thresholds were set before any run.",
)
KINDS = {"by activations": "2 layers of 256"}


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    kind = f"2 layers of {arm.split()[0]}" if setting == "width" else KINDS.get(setting, setting)
    both = runs(kind, seed)
    if both is None:
        missing = float("nan")
        return Trial(missing, {}, ((0,), (missing,)), defaultdict(lambda: missing))
    end, numbers = both.ends[1], {"accuracy of one run": both.accuracy(both.ends[0])}
    if arm != "as trained":
        found = aligned(kind, seed, "activations" if setting == "by activations" else "weights")
        assert found is not None
        end, report = found
        numbers |= {
            "distance as trained": report.distance[0],
            "distance matched": report.distance[1],
            "sweeps": float(report.sweeps),
            "groups of units": float(len(report.permutations)),
        }
    path = line(both, end)
    return Trial(max(path.barrier, LEAST), both.spec, (path.at, path.losses), numbers)
