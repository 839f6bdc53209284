"""Phases of training: a hidden Markov model over the readings of runs (arXiv 2308.09543)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg._core.checks import check_choice, check_count
from thalweg.probe._markov import Markov
from thalweg.probe._series import Array, Run, aligned, named_runs, spread, standardised
from thalweg.probe.cost import costs

__all__ = ["PhaseScore", "Phases", "fit_phases"]

CRITERIA = ("bic", "aic", "held out")
SHARE = 5  # one run in so many is held out
STATES = range(1, 9)


@dataclass(frozen=True)
class PhaseScore:
    """How well a number of states fits.

    Attributes:
        log_likelihood: of all readings together, in nats.
        parameters: free parameters.
        bic, aic: -2 log-likelihood plus ``parameters`` times log(points in time), or times 2; least is best.
        held_out: log-likelihood, in nats a point in time, of runs that the fit did not see; NaN unless asked.
    """

    log_likelihood: float
    parameters: int
    bic: float
    aic: float
    held_out: float


@dataclass(frozen=True, eq=False)
class Phases:
    """Latent states of training, numbered in the order in which runs pass through them on average.

    With k states and d readings:

    Attributes:
        readings: their names, the order of every d.
        states: run to its most likely state at each point in time (Viterbi).
        steps: run to the step of each of these points.
        model: ``start`` [k], ``transitions`` [k, k] from row to column, ``means`` [k, d] and ``covariances``
            [k, d, d], in standard deviations of the readings.
        values: run to what was fitted, [time, d], in standard deviations.
        center, scale: [d]; new runs are standardised with these.
        of: ``"levels"`` or ``"changes"``.
        scores: number of states to its :class:`PhaseScore`.
    """

    readings: tuple[str, ...]
    states: dict[str, tuple[int, ...]]
    steps: dict[str, tuple[float, ...]]
    model: Markov
    values: dict[str, Array]
    center: Array
    scale: Array
    of: str
    scores: dict[int, PhaseScore]

    @property
    def count(self) -> int:
        """Number of states."""
        return len(self.model.start)

    def occupancy(self, run: str) -> tuple[int, ...]:
        """How many points in time a run spends in each state."""
        return tuple(self.states[run].count(state) for state in range(self.count))

    def course(self, run: str) -> tuple[int, ...]:
        """The states of a run in order, without repeats."""
        states = self.states[run]
        changed = [n for n in range(len(states)) if n == 0 or states[n] != states[n - 1]]
        return tuple(states[n] for n in changed)


@costs(0, 0, memory="the readings, on the host")
def fit_phases(
    runs: Mapping[str, Run] | Sequence[Run],
    *,
    states: int | Iterable[int] = STATES,
    criterion: str = "bic",
    of: str = "levels",
    standardise: str = "run",
    covariance: str = "diag",
    restarts: int = 5,
    iterations: int = 32,
    seed: int = 0,
) -> Phases:
    r"""Find the phases that several runs pass through, from their readings alone (arXiv 2308.09543).

    A Gaussian hidden Markov model is fitted by expectation maximisation to the standardised readings of all
    runs; the number of states is the one with the best ``criterion``. Readings close in time hardly differ,
    so that the criteria ask for ever more states the finer a run is read: look at ``scores`` for the elbow,
    and give ``states`` as a number then. Runs on the host, in a second for a thousand points in time, and in
    minutes for 100,000, of which a part tells as much. torch's and numpy's random states are not touched.

    From a run store, with readings taken at different steps::

        with RunStore("runs.db") as store:
            runs = {
                info.name: {
                    name: {reading.step: reading.value for reading in store.readings(info.id, name)}
                    for name in ("gradient norm", "weight norm")
                }
                for info in store.runs()
            }
        phases = fit_phases(runs)

    Args:
        runs: name to run, or a list of runs. A run is a mapping of each reading's name to its values in time,
            or to a mapping of steps to values (then the rarest reading sets the times, and each other one
            counts with its last value), or an array (time, readings). Lengths may differ between runs; all
            have the same readings. :func:`weight_statistics` gives those of the paper.
        states: how many, or the numbers to choose from; by default 1 to 8, or as many as points in time.
        criterion: ``"bic"``, ``"aic"``, or ``"held out"``: the log-likelihood of a fifth of the runs, drawn
            by ``seed``, under a model of the others; needs 5 runs.
        of: ``"levels"`` of the readings, as in the paper, or ``"changes"``, from one point to the next.
        standardise: subtract the mean and divide by the standard deviation over each ``"run"``'s own course,
            as in the paper, or over ``"all"`` of them. A reading that is constant there becomes 0.
        covariance: ``"diag"``, or ``"full"`` for many runs: readings are alike, and below about 40 runs it
            overfits.
        restarts: fits for each number of states, each from other clusters of the readings.
        iterations: most steps of expectation maximisation a fit; it ends once a step gains less than 1e-4
            nats a point in time.
        seed: of all that is random.

    Raises:
        ValueError: an argument is out of range, a run is too short, has other readings or some that are not
            finite, a reading is constant in every run, or there are more states than points in time.
    """
    check_choice("criterion", criterion, CRITERIA)
    check_choice("of", of, ("levels", "changes"))
    check_choice("standardise", standardise, ("run", "all"))
    check_choice("covariance", covariance, ("diag", "full"))
    for name, count in (("restarts", restarts), ("iterations", iterations)):
        check_count(name, count)
    check_count("seed", seed, 0)
    numbers = [int(states)] if isinstance(states, int | np.integer) else list(states)
    for number in numbers:
        check_count("states", number)
    if not numbers:
        raise ValueError("states must hold at least one number, got none")
    given = named_runs(runs)
    if not given:
        raise ValueError("runs must hold at least one run, got none")
    if criterion == "held out" and len(given) < SHARE:
        raise ValueError(f"criterion 'held out' must have at least {SHARE} runs, got {len(given)}")

    names: list[str] | None = None
    steps, levels = {}, {}
    for run, readings in given.items():
        names, times, found = aligned(run, readings, names)
        levels[run] = np.diff(found, axis=0) if of == "changes" else found
        steps[run] = tuple(times[1:].tolist() if of == "changes" else times.tolist())
    assert names is not None
    values, center, scale = _standard(levels, standardise, names)
    longest = sum(map(len, values.values()))
    if states is STATES:
        numbers = [number for number in numbers if number <= longest]
    if max(numbers) > longest:
        raise ValueError(f"states must be at most the {longest} points in time, got {max(numbers)}")

    # hmmlearn brings scikit-learn, whose import takes a second: only for those who ask.
    from thalweg.probe import _markov_fit

    data = list(values.values())
    fits, scores = {}, {}
    for number in sorted(set(numbers)):
        fits[number], likelihood = _markov_fit.fit(data, number, covariance, restarts, iterations, seed)
        free = _markov_fit.parameters(number, len(names), covariance)
        held = math.nan
        if criterion == "held out":
            held = _held_out(data, number, covariance, restarts, iterations, seed)
        scores[number] = PhaseScore(
            likelihood, free, free * math.log(longest) - 2 * likelihood, 2 * free - 2 * likelihood, held
        )
    chosen = min(scores, key=lambda number: _badness(scores[number], criterion))
    model = fits[chosen]
    order = np.argsort(_mean_times(model, data), kind="stable")
    rank = np.argsort(order)
    decoded = {run: tuple(rank[model.predict(one)].tolist()) for run, one in values.items()}
    return Phases(
        tuple(names),
        decoded,
        steps,
        _markov_fit.read(model).reordered(order),
        values,
        center,
        scale,
        of,
        scores,
    )


def _standard(levels: dict[str, Array], by: str, names: list[str]) -> tuple[dict[str, Array], Array, Array]:
    spreads = {run: spread(values) for run, values in levels.items()}
    moves = np.any([scale > 0 for _, scale in spreads.values()], axis=0)
    center, scale = spread(np.concatenate(list(levels.values())))
    still = np.flatnonzero(~(moves if by == "run" else scale > 0))
    if len(still):
        raise ValueError(f"reading {names[still[0]]!r} must change in some run, got a constant; leave it out")
    if by == "all":
        return {run: standardised(values, center, scale) for run, values in levels.items()}, center, scale
    own = {run: standardised(values, *spreads[run]) for run, values in levels.items()}
    # A run that still goes on has no mean over its whole course: what the others had stands for it.
    center, scale = (np.mean([pair[part] for pair in spreads.values()], axis=0) for part in (0, 1))
    return own, center, scale


def _held_out(
    data: list[Array], number: int, covariance: str, restarts: int, iterations: int, seed: int
) -> float:
    order = np.random.default_rng(seed).permutation(len(data))
    cut = len(data) // SHARE
    kept, left = ([data[n] for n in part] for part in (order[cut:], order[:cut]))
    from thalweg.probe import _markov_fit

    model, _ = _markov_fit.fit(kept, number, covariance, restarts, iterations, seed)
    return model.score(np.concatenate(left), list(map(len, left))) / sum(map(len, left))


def _badness(score: PhaseScore, criterion: str) -> float:
    return {"bic": score.bic, "aic": score.aic, "held out": -score.held_out}[criterion]


def _mean_times(model: Any, data: list[Array]) -> Array:
    """When, as a share of its run, each state is visited on average."""
    shares = np.concatenate([model.predict_proba(one) for one in data])
    times = np.concatenate([np.linspace(0, 1, len(one)) for one in data])
    return (shares * times[:, None]).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-300)
