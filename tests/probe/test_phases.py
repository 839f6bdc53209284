from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from thalweg.probe import detours, fit_phases, follow_phases, plot_phases, transition_map
from thalweg.probe._markov import Markov
from thalweg.probe.phases import Phases
from thalweg.watch.readings import Reading
from thalweg.watch.store import RunStore

MEANS = np.array([[0.0, 0.0], [3.0, -1.0], [3.0, 3.0]])
# Every run ends in the third phase; some skip the second.
MOVES = np.array([[0.9, 0.07, 0.03], [0.0, 0.94, 0.06], [0.0, 0.0, 1.0]])


def switching(runs: int = 12, length: int = 60) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    source = np.random.default_rng(0)
    series, truth = {}, {}
    for run in range(runs):
        states = [0]
        for _ in range(length - 1):
            states.append(source.choice(3, p=MOVES[states[-1]]))
        truth[str(run)] = np.array(states)
        series[str(run)] = MEANS[states] + 0.5 * source.standard_normal((length, 2))
    return series, truth


@pytest.fixture(scope="module")
def fitted() -> tuple[Phases, dict[str, np.ndarray], dict[str, np.ndarray]]:
    series, truth = switching()
    return fit_phases(series, states=range(1, 5), standardise="all", restarts=3), series, truth


def test_bic_finds_the_number_of_phases_and_the_path_of_every_run(fitted):
    phases, _, truth = fitted
    assert phases.count == 3
    found = np.concatenate([phases.states[run] for run in truth])
    true = np.concatenate(list(truth.values()))
    assert max((np.array(order)[found] == true).mean() for order in permutations(range(3))) >= 0.97
    assert (found == true).mean() >= 0.97  # numbered in order of time


def test_fitted_numbers_are_those_that_made_the_series(fitted):
    phases, _, _ = fitted
    assert phases.model.means * phases.scale + phases.center == pytest.approx(MEANS, abs=0.1)
    assert phases.model.transitions == pytest.approx(MOVES, abs=0.05)
    deviations = np.sqrt(np.diagonal(phases.model.covariances, axis1=1, axis2=2)) * phases.scale
    assert deviations == pytest.approx(np.full((3, 2), 0.5), abs=0.07)


def density(markov: Markov, values: np.ndarray) -> float:
    """Summed over every path of states, one by one."""
    return sum(
        _chance(markov, path, values) for path in product(range(len(markov.start)), repeat=len(values))
    )


def test_criteria_are_those_of_the_likelihood_summed_over_all_paths():
    source = np.random.default_rng(1)
    runs = [source.standard_normal((4, 2)) + 2 * n for n in range(3)]
    phases = fit_phases(runs, states=2, standardise="all", covariance="full", restarts=1)
    likelihood = sum(np.log(density(phases.model, values)) for values in phases.values.values())
    score = phases.scores[2]
    free = 1 + 2 + 2 * 2 + 2 * 3  # start, transitions, means, covariances
    assert score.parameters == free and score.log_likelihood == pytest.approx(likelihood)
    assert score.bic == pytest.approx(free * np.log(12) - 2 * likelihood)
    assert score.aic == pytest.approx(2 * free - 2 * likelihood)


def test_following_gives_the_probability_of_each_state_given_the_past_alone(fitted):
    phases, series, _ = fitted
    short = series["0"][:5]
    found = follow_phases(phases, short)
    values = (short - phases.center) / phases.scale
    for time in range(1, 6):
        joint = sum(found.log_density[:time])
        assert joint == pytest.approx(np.log(density(phases.model, values[:time])))
    paths = product(range(3), repeat=5)
    reached = np.zeros(3)
    for path in paths:
        reached[path[-1]] += _chance(phases.model, path, values)
    assert found.probability[4] == pytest.approx(reached / reached.sum())
    whole = follow_phases(phases, series["3"])
    assert np.mean(np.array(whole.states) == phases.states["3"]) > 0.97


def _chance(markov: Markov, path: tuple[int, ...], values: np.ndarray) -> float:
    chance = markov.start[path[0]]
    for before, after in pairwise(path):
        chance *= markov.transitions[before, after]
    for state, row in zip(path, values, strict=True):
        chance *= multivariate_normal(markov.means[state], markov.covariances[state]).pdf(row)
    return chance


def test_a_run_unlike_any_other_has_a_low_density(fitted):
    phases, series, _ = fitted
    usual = follow_phases(phases, series["0"]).log_density
    strange = follow_phases(phases, series["0"] * 5).log_density
    assert (
        np.median(strange) < usual.min() and np.isfinite(follow_phases(phases, series["0"]).probability).all()
    )


def test_what_a_state_rules_out_is_survived():
    model = Markov(np.array([1.0, 0.0]), np.eye(2), np.array([[0.0], [900.0]]), np.ones((2, 1, 1)))
    phases = Phases(("a",), {}, {}, model, {}, np.zeros(1), np.ones(1), "levels", {})
    found = follow_phases(phases, [0.0, 0.0, 900.0, 900.0])
    assert found.states == (0, 0, 1, 1) and found.log_density[2] == -np.inf


def test_transitions_are_counted_with_the_readings_that_change(fitted):
    phases, _, _ = fitted
    made = transition_map(phases)
    for (source, target), transition in made.items():
        times = [
            run
            for run, states in phases.states.items()
            for pair in pairwise(states)
            if pair == (source, target)
        ]
        assert transition.count == len(times) and set(transition.runs) == set(times)
    assert made[0, 1].probability + made[0, 2].probability == 1
    change = made[1, 2].changes
    assert list(change) == ["1", "0"] and change["1"] * phases.scale[1] == pytest.approx(4, abs=0.2)
    assert change["0"] * phases.scale[0] == pytest.approx(0, abs=0.2)


def test_influence_is_the_gradient_of_the_filtered_log_probability(fitted):
    phases, _, _ = fitted
    model = {
        name: torch.tensor(getattr(phases.model, name))
        for name in ("start", "transitions", "means", "covariances")
    }
    gradients = []
    for run, states in phases.states.items():
        for time, pair in enumerate(pairwise(states)):
            if pair != (1, 2):
                continue
            values = torch.tensor(phases.values[run][: time + 1], requires_grad=True)
            prior = model["start"]
            for row in values:
                normal = torch.distributions.MultivariateNormal(model["means"], model["covariances"])
                joint = torch.log(prior) + normal.log_prob(row)
                share = joint - joint.logsumexp(0)
                prior = share.exp() @ model["transitions"]
            (gradient,) = torch.autograd.grad(share[2], values)
            gradients.append(gradient[-1])
    expected = dict(zip(phases.readings, torch.stack(gradients).mean(0).tolist(), strict=True))
    assert transition_map(phases)[1, 2].influence == pytest.approx(expected, rel=1e-6)


def by_hand(states: dict[str, list[int]], count: int) -> Phases:
    model = Markov(np.ones(count) / count, np.eye(count), np.zeros((count, 1)), np.ones((count, 1, 1)))
    paths = {run: tuple(path) for run, path in states.items()}
    steps = {run: tuple(10.0 * n for n in range(len(path))) for run, path in paths.items()}
    return Phases(("a",), paths, steps, model, {}, np.zeros(1), np.ones(1), "levels", {})


def test_optional_phases_and_courses_are_read_off_the_paths():
    phases = by_hand({"a": [0, 0, 2, 2], "b": [0, 1, 1, 2], "c": [0, 2, 2, 2], "d": [0, 1, 0, 2]}, 4)
    found = detours(phases)
    assert found.visitors == {0: ("a", "b", "c", "d"), 1: ("b", "d"), 2: ("a", "b", "c", "d"), 3: ()}
    assert found.optional == (1,) and found.costs == {} and np.isnan(found.explained)
    assert found.courses == {(0, 2): ("a", "c"), (0, 1, 2): ("b",), (0, 1, 0, 2): ("d",)}
    assert next(iter(found.courses)) == (0, 2) and phases.occupancy("d") == (2, 1, 1, 0)


def counted(source: np.random.Generator, runs: int, equal: bool) -> tuple[Phases, np.ndarray]:
    counts = source.integers(0, 9, (runs, 3))
    if equal:
        counts[:, 2] = 20 - counts[:, 0] - counts[:, 1]
    paths = {str(n): [s for s in range(3) for _ in range(row[s])] for n, row in enumerate(counts)}
    return by_hand(paths, 3), counts.astype(float)


def test_regression_equals_the_textbook_one():
    source = np.random.default_rng(0)
    phases, counts = counted(source, 20, equal=False)
    outcome = counts @ [2.0, -1.0, 0.0] + source.standard_normal(20)
    found = detours(phases, {str(n): value for n, value in enumerate(outcome)})
    design = np.column_stack([np.ones(20), counts])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ outcome
    residual = outcome - design @ coefficients
    errors = np.sqrt(np.diag(inverse) * (residual**2).sum() / 16)
    t_values = torch.tensor(coefficients / errors)
    from scipy.stats import t

    for state in range(3):
        assert found.costs[state].slope == pytest.approx(coefficients[state + 1])
        assert found.costs[state].p_value == pytest.approx(2 * t.sf(abs(t_values[state + 1].item()), 16))
    scatter = ((outcome - outcome.mean()) ** 2).sum()
    assert found.explained == pytest.approx(1 - (residual**2).sum() / scatter)
    # Left-out residuals of least squares are the residuals over one minus the leverage.
    leverage = np.diag(design @ inverse @ design.T)
    left_out = ((residual / (1 - leverage)) ** 2).sum() / (scatter * (20 / 19) ** 2)
    assert found.predicted == pytest.approx(1 - left_out)


def test_counts_that_add_up_leave_slopes_against_their_mean():
    source = np.random.default_rng(0)
    phases, counts = counted(source, 15, equal=True)
    found = detours(phases, {str(n): 5 + 3 * row[1] for n, row in enumerate(counts)}, significance=0.01)
    assert [cost.slope for cost in found.costs.values()] == pytest.approx([-1, 2, -1])
    assert found.explained == pytest.approx(1) and found.predicted == pytest.approx(1)
    assert found.costs[1].p_value < 1e-9
    assert found.slow == ((1,) if 1 in found.optional else ())


def test_a_detour_is_an_optional_phase_that_goes_with_a_worse_outcome():
    paths = {str(n): [0] * (10 - n % 3) + [1] * (n % 3) + [2] * (4 + n % 2) for n in range(12)}
    outcome = {str(n): 100.0 + 50 * (n % 3) + (n % 2) for n in range(12)}
    found = detours(by_hand(paths, 3), outcome)
    assert found.optional == (1,) and found.slow == (1,) and found.explained > 0.99
    faster = detours(by_hand(paths, 3), {run: -value for run, value in outcome.items()})
    assert faster.slow == ()


def test_readings_of_a_run_store_are_aligned_and_fitted(tmp_path):
    series, _ = switching(6, 40)
    with RunStore(tmp_path / "runs.db", write=True) as store:
        for run, values in series.items():
            number = store.begin(run, {})
            readings = [Reading(5 * n + 5, "gradient norm", row[0]) for n, row in enumerate(values)]
            readings += [Reading(5 * n + 5, "loss", row[1]) for n, row in enumerate(values)]
            readings += [Reading(5 * n + 2, "loss", 1e3) for n in range(1, len(values))]  # overtaken
            store.write(number, 200, [(0.0, reading) for reading in readings], [])
    with RunStore(tmp_path / "runs.db") as store:
        runs = {
            info.name: {
                name: {reading.step: reading.value for reading in store.readings(info.id, name)}
                for name in ("gradient norm", "loss")
            }
            for info in store.runs()
        }
    phases = fit_phases(runs, states=3, standardise="all", restarts=2)
    plain = fit_phases(series, states=3, standardise="all", restarts=2)
    assert phases.readings == ("gradient norm", "loss") and phases.steps["0"][:3] == (5, 10, 15)
    assert phases.states == plain.states


def test_a_rarer_reading_sets_the_times_from_where_all_have_begun():
    run = {"often": {n: float(n) for n in range(20)}, "rare": {n: n % 3 + 0.5 for n in range(3, 20, 4)}}
    phases = fit_phases({"a": run}, states=1, standardise="all")
    assert phases.steps["a"] == (3, 7, 11, 15, 19)
    assert phases.values["a"][:, 0] * phases.scale[0] + phases.center[0] == pytest.approx([3, 7, 11, 15, 19])
    late = {"often": {n: float(n) for n in range(20)}, "rare": {n: n % 3 + 0.5 for n in range(-9, 20, 4)}}
    assert fit_phases({"a": late}, states=1).steps["a"] == (3, 7, 11, 15, 19)


def test_lists_columns_and_arrays_are_the_same_run():
    values = np.random.default_rng(0).standard_normal((20, 2)).cumsum(0)
    kept = values.copy()
    fits = [
        fit_phases(given, states=2, restarts=1)
        for given in (
            [values],
            {"0": {"0": values[:, 0], "1": values[:, 1].tolist()}},
            [torch.tensor(values)],
        )
    ]
    assert fits[0].states == fits[1].states == fits[2].states
    assert (values == kept).all()
    assert fits[0].values["0"].mean(axis=0) == pytest.approx([0, 0], abs=1e-12)
    assert fits[0].values["0"].std(axis=0) == pytest.approx([1, 1])


def test_changes_are_differences_in_time_in_standard_deviations():
    values = np.array([[0.0], [1.0], [3.0], [6.0]])
    phases = fit_phases([values], states=1, of="changes")
    assert phases.steps["0"] == (1, 2, 3)
    assert phases.values["0"][:, 0] == pytest.approx((np.array([1, 2, 3]) - 2) / np.sqrt(2 / 3))
    assert len(follow_phases(phases, values).states) == 3


def test_fits_repeat_and_leave_every_global_random_state():
    series, _ = switching(5, 30)
    before, random = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (fit_phases(series, states=3, restarts=2, criterion="held out") for _ in range(2))
    assert first.states == second.states and first.scores == second.scores
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == random).all()


def test_held_out_runs_are_scored_by_a_model_of_the_others():
    series, _ = switching(10, 40)
    phases = fit_phases(series, states=(1, 3), standardise="all", restarts=2, criterion="held out")
    assert phases.count == 3 and phases.scores[3].held_out > phases.scores[1].held_out
    order = np.random.default_rng(0).permutation(10)
    kept = np.concatenate([phases.values[str(n)] for n in order[2:]])
    left = np.concatenate([phases.values[str(n)] for n in order[:2]])
    # One state: the held-out density of a Gaussian with the moments of the kept readings.
    normal = multivariate_normal(kept.mean(0), np.diag(kept.var(0)))
    assert phases.scores[1].held_out == pytest.approx(normal.logpdf(left).mean(), abs=1e-3)


def test_a_short_run_has_as_many_phases_as_it_can_and_nothing_is_logged(caplog):
    run = {"loss": [3.0, 2.9, 1.0, 1.1, 0.2], "norm": [1.0, 1.1, 5.0, 5.1, 9.0]}
    found = fit_phases({"only": run})
    assert list(found.scores) == [1, 2, 3, 4, 5]
    assert not caplog.records


def test_a_reading_that_is_constant_in_one_run_does_no_harm_and_no_variance_vanishes():
    series, _ = switching(5, 30)
    runs = {run: {"x": values[:, 0], "y": values[:, 1]} for run, values in series.items()}
    runs["0"]["y"] = np.full(30, 7.0)
    phases = fit_phases(runs, states=2, restarts=2)
    assert not phases.values["0"][:, 1].any()
    variances = np.diagonal(phases.model.covariances, axis1=1, axis2=2)
    assert variances.min() >= 1e-3 and np.isfinite(phases.model.means).all()
    step = [[0.0, 0.0]] * 10 + [[1.0, 1.0]] * 10
    for covariance in ("diag", "full"):
        exact = fit_phases([step], states=2, covariance=covariance, restarts=1).model
        assert np.linalg.eigvalsh(exact.covariances).min() >= 1e-3 * (1 - 1e-9)
        assert exact.means == pytest.approx(np.array([[-1, -1], [1, 1]]))


GOOD = {"x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 1.0]}


@pytest.mark.parametrize(
    ("runs", "changed", "message"),
    [
        ({}, {}, "runs must hold at least one run, got none"),
        ({"a": {"x": [0.0, 1.0]}}, {}, r"run 'a' must have at least 3 readings in time, got shape \(2, 1\)"),
        ({"a": {}}, {}, r"run 'a' must have at least 3 readings in time, got shape \(0, 0\)"),
        (
            {"a": np.zeros((2, 2, 2))},
            {},
            r"run 'a' must be an array \(time, readings\), got shape \(2, 2, 2\)",
        ),
        ({"a": {"x": [0, 1, 2], "y": [0, 1]}}, {}, r"equally many readings.*got \{'x': 3, 'y': 2\}"),
        ({"a": {"x": {0: 0.0}, "y": {}}}, {}, "run 'a' must have values of each reading, got none of 'y'"),
        ({"a": {"x": {0: 0.0}, "y": [0, 1]}}, {}, "all its readings by step or none, got both kinds"),
        (
            {"x": {0: 0.0, 1: 2.0, 2: 1.0}},
            {},
            r"run 'x' must map each reading's name to its values, got 0.0 for 0; .*give \{'run': readings\}",
        ),
        ({"a": {"x": [0, np.nan, 2]}}, {}, "run 'a' must have finite readings, got nan for 'x' at step 1"),
        ({"a": GOOD, "b": {"x": [0, 1, 2], "z": [0, 1, 2]}}, {}, "run 'b' must have the reading 'y'"),
        ({"a": {"x": [5, 5, 5]}}, {}, "reading 'x' must change in some run, got a constant"),
        ({"a": GOOD}, {"states": 4}, "states must be at most the 3 points in time, got 4"),
        ({"a": GOOD}, {"states": ()}, "states must hold at least one number, got none"),
        ({"a": GOOD}, {"states": 0}, "states must be an integer >= 1, got 0"),
        ({"a": GOOD}, {"criterion": "BIC"}, "criterion must be one of aic, bic, held out; got 'BIC'"),
        ({"a": GOOD}, {"criterion": "held out"}, "'held out' must have at least 5 runs, got 1"),
        ({"a": GOOD}, {"covariance": "tied"}, "covariance must be one of diag, full; got 'tied'"),
        ({"a": GOOD}, {"of": "level"}, "of must be one of changes, levels; got 'level'"),
        ({"a": GOOD}, {"restarts": 0}, "restarts must be an integer >= 1, got 0"),
    ],
)
def test_fit_phases_refuses(runs, changed, message):
    with pytest.raises(ValueError, match=message):
        fit_phases(runs, **{"states": 1, **changed})


def test_the_number_of_states_may_be_numpys():
    assert fit_phases({"a": GOOD}, states=np.int64(2)).count == 2


def test_detours_refuses():
    phases = by_hand({"a": [0, 1], "b": [0, 0]}, 2)
    with pytest.raises(ValueError, match="a number for every run, got none for 'b'"):
        detours(phases, {"a": 1.0})
    with pytest.raises(ValueError, match="outcome of run 'b' must be finite, got nan"):
        detours(phases, {"a": 1.0, "b": np.nan})
    with pytest.raises(ValueError, match="at least 3 runs to regress on them, got 2"):
        detours(phases, {"a": 1.0, "b": 2.0})


def test_the_picture_puts_runs_that_never_converged_last_and_wants_all():
    phases = by_hand({"a": [0, 0, 2], "b": [0, 1, 1], "c": [0, 2, 2]}, 3)
    courses, _ = plot_phases(phases, outcome={"a": np.nan, "b": 20, "c": 10}).axes
    assert [label.get_text() for label in courses.get_yticklabels()] == ["c", "b", "a"]
    with pytest.raises(ValueError, match="outcome must have a number for every run, got none for 'c'"):
        plot_phases(phases, outcome={"a": 3, "b": 20})


def test_the_picture_numbers_the_phases_and_marks_the_outcome(tmp_path):
    phases = by_hand({"a": [0, 0, 2, 2], "b": [0, 1, 1, 2], "c": [0, 2, 2, 2]}, 3)
    figure = plot_phases(phases, outcome={"a": 30, "b": 10, "c": 20})
    courses, chart = figure.axes
    assert courses.get_title(loc="left") == "3 phases; only some runs visit 1"
    assert courses.get_xlabel() == "optimizer step" and courses.get_ylabel() == "run"
    assert [label.get_text() for label in courses.get_yticklabels()] == ["b", "c", "a"]
    assert [text.get_text() for text in courses.texts] == ["0", "1", "2", "0", "2", "0", "2"]
    assert [bar.get_width() for bar in courses.patches] == [10, 20, 10, 10, 30, 20, 20]
    assert list(courses.lines[0].get_xdata()) == [10, 20, 30]
    assert sorted(text.get_text() for text in chart.texts) == ["1", "1", "2"]
    assert (chart.get_xlabel(), chart.get_ylabel()) == ("to phase (number)", "from phase (number)")
    figure.savefig(tmp_path / "phases.png")
    assert (
        plot_phases(by_hand({"a": [0, 0]}, 1)).axes[0].get_title(loc="left")
        == "1 phases; all runs visit each"
    )
    with pytest.raises(ValueError, match="at most 60 runs to draw, got 61"):
        plot_phases(by_hand({str(n): [0, 0] for n in range(61)}, 1))


def test_a_state_that_loses_its_readings_keeps_its_moments():
    """Two levels of readings that hardly differ within themselves; most of four states are left empty."""
    draw = np.random.default_rng(5)
    runs = [np.round(5 * draw.standard_normal((n, 3))) + level for n, level in ((3, 0), (8, 1e6), (6, 0))]
    for covariance in ("full", "diag"):
        found = fit_phases(runs, states=range(1, 6), covariance=covariance, standardise="all", restarts=3)
        for numbers in (found.model.means, found.model.covariances, found.model.transitions):
            assert np.isfinite(numbers).all()
        assert [found.states[run][0] for run in "012"] == [found.states[run][-1] for run in "012"]
        assert np.abs(found.model.means).max() < 10 and found.model.covariances.max() < 10
