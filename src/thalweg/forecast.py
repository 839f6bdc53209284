"""``thalweg forecast``: the loss of schedules that were not run, by the annealing law of logged ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from thalweg._core.checks import check_choice, check_count, check_number
from thalweg._core.terminal import console, print_whole, user_errors
from thalweg._logged_run import Logged, logged
from thalweg._planned_rates import planned_rates

if TYPE_CHECKING:
    import numpy as np

    from thalweg.theory import AnnealingLaw, LossForecast

STORE = Path("runs") / "thalweg.sqlite"
DECAY = 0.999  # the paper's; also what forecast best for the tuning seeds of the study
MARKS = (0.25, 0.5, 0.75, 1.0)  # of a run, at which the table tells the loss
STRETCH = 2.0  # times the annealing area of all fitted losses, beyond which a forecast is marked


@dataclass(frozen=True)
class Planned:
    """A schedule that is asked about, and its forecast after every step."""

    name: str
    rates: np.ndarray
    curve: LossForecast


def forecast(
    run: Annotated[
        list[str], typer.Argument(help="Id or name of a run in the store; several to fit together.")
    ],
    schedule: Annotated[
        list[str],
        typer.Option(
            help="constant, cosine, linear or wsd, with settings if need be, such as "
            "wsd:cooldown=0.2,steps=4000,peak=1e-3; or a file with the rate of every step. May be repeated."
        ),
    ],
    store: Annotated[Path, typer.Option(help="The run store (SQLite).")] = STORE,
    loss: Annotated[str, typer.Option(help="The reading to forecast.")] = "loss",
    decay: Annotated[
        list[float] | None,
        typer.Option(help=f"Lambda of the law, {DECAY} if none is given; of several the one that fits best."),
    ] = None,
    skip: Annotated[
        int | None, typer.Option(help="Steps after the warm-up that are not fitted.", show_default="a tenth")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture to write, .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit the annealing law (arXiv 2408.11029) to logged runs and forecast the loss under other schedules."""
    with user_errors():
        if plot is not None:
            check_choice("ending of --plot", plot.suffix.lower(), (".png", ".svg"))
            if not plot.parent.is_dir():
                raise ValueError(f"--plot must be in a folder that exists, got {str(plot)!r}")
        from thalweg.watch import RunStore
        from thalweg.watch._store_file import in_words

        with in_words(store), RunStore(store) as opened:
            found = [logged(opened, one, loss) for one in run]
        runs = list({one.name: one for one in found}.values())  # an id and a name may be of one run
        plans = {text: planned_rates(text, runs[0].rates) for text in schedule}
        law = fitted(runs, decay or [DECAY], skip)
        planned = [Planned(text, rates, law.predict(rates)) for text, rates in plans.items()]
        if plot is not None:
            draw(plot, runs, planned, loss)
    if as_json:
        typer.echo(json.dumps(_plain(law, runs, planned, loss), indent=1))
    else:
        _show(law, runs, planned, loss)


def fitted(runs: Sequence[Logged], decays: Sequence[float], skip: int | None) -> AnnealingLaw:
    """The law of these runs; by default a tenth of the shortest is left out behind the warm-up."""
    from thalweg.theory import annealing_law

    for one in decays:
        check_number("--decay", one, 0, 1)
    if skip is not None:
        check_count("--skip", skip, 0)
    left_out = min(len(one.rates) for one in runs) // 10 if skip is None else skip
    curves = [[one.rates for one in runs], [one.losses for one in runs], [one.steps for one in runs]]
    try:
        return annealing_law(*curves, decay=decays, skip=left_out)
    except ValueError as error:
        raise ValueError(f"{' and '.join(one.name for one in runs)} cannot be fitted: {error}") from None


def draw(path: Path, runs: Sequence[Logged], planned: Sequence[Planned], loss: str) -> None:
    """Logged losses in grey, forecasts with a band of two standard errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for one in runs:
        axes.plot(one.steps, one.losses, color="0.75", linewidth=0.8, label=f"{one.name}, logged")
    shown = planned[:5]
    colours, dashes = ("#0b3d91", "#b3541e", "#2f7d4f", "#6b4fa0", "#111111"), ("-", "--", "-.", ":", "-")
    for plan, colour, dash in zip(shown, colours, dashes, strict=False):
        late = slice(len(plan.rates) // 10, None)
        at, middle, error = plan.curve.steps[late], plan.curve.loss[late], plan.curve.error[late]
        axes.fill_between(at, middle - 2 * error, middle + 2 * error, color=colour, alpha=0.2, linewidth=0)
        axes.plot(at, middle, color=colour, linestyle=dash, linewidth=1.6, label=plan.name)
    best = min(shown, key=lambda one: one.curve.loss[-1])
    axes.set_title(
        f"Forecast: {best.name} ends at {best.curve.loss[-1]:.4f} ± {best.curve.error[-1]:.4f}"
        + (", the lowest" if len(shown) > 1 else ""),
        fontsize=9,
    )
    axes.set_xlabel("optimizer steps done")
    axes.set_ylabel(f"{loss} (as logged)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _notes(runs: Sequence[Logged], planned: Sequence[Planned]) -> list[str]:
    """What to know before a forecast is believed."""
    notes = [note for one in runs for note in one.notes]
    for one in planned:
        stretch, sunk = float(one.curve.stretch.max()), bool((one.curve.loss <= 0).any())
        if stretch > STRETCH or sunk:
            below = " and falls below 0" if sunk else ""
            notes.append(
                f"{one.name} goes beyond what the runs can tell: it anneals {stretch:.2g} times as far as "
                f"any fitted loss{below}. Fit a run that cools down as far, too"
            )
    return notes


def _marks(one: Planned) -> list[int]:
    return [max(0, round(mark * len(one.rates)) - 1) for mark in MARKS]


def _plain(
    law: AnnealingLaw, runs: Sequence[Logged], planned: Sequence[Planned], loss: str
) -> dict[str, Any]:
    numbers = ("floor", "scale", "exponent", "cooling", "decay", "residual", "readings")
    return {
        "runs": [one.name for one in runs],
        "loss": loss,
        "law": {name: getattr(law, name) for name in numbers},
        "schedules": [
            {
                "schedule": one.name,
                "steps": len(one.rates),
                "peak": float(one.rates.max()),
                "final_loss": float(one.curve.loss[-1]),
                "error": float(one.curve.error[-1]),
                "stretch": float(one.curve.stretch.max()),
                "curve": {
                    "steps": [int(one.curve.steps[i]) for i in _marks(one)],
                    "loss": [float(one.curve.loss[i]) for i in _marks(one)],
                    "error": [float(one.curve.error[i]) for i in _marks(one)],
                },
            }
            for one in planned
        ],
        "notes": _notes(runs, planned),
    }


def _show(law: AnnealingLaw, runs: Sequence[Logged], planned: Sequence[Planned], loss: str) -> None:
    screen = console()
    title = f"{loss} by the annealing law, fitted on {' and '.join(one.name for one in runs)}"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("schedule")
    for column in ("steps", "peak rate", *(f"at {mark:.0%}" for mark in MARKS[:-1]), "final loss", "±"):
        table.add_column(column, justify="right")
    for one in planned:
        *earlier, last = _marks(one)
        table.add_row(
            Text(one.name),
            f"{len(one.rates)}",
            f"{one.rates.max():.3g}",
            *(f"{one.curve.loss[i]:.4f}" for i in earlier),
            f"{one.curve.loss[last]:.4f}",
            f"{one.curve.error[last]:.4f}",
        )
    print_whole(screen, table)
    screen.print(
        f"L = {law.floor:.4g} + {law.scale:.4g} S1^-{law.exponent:.3g} - {law.cooling:.4g} S2, "
        f"decay {law.decay:g}; {law.readings} losses fitted, scatter {law.residual:.2%}. "
        "± is the standard error of the fit: what the law itself misses is not in it.",
        style="dim",
        soft_wrap=True,
    )
    for note in _notes(runs, planned):
        screen.print(Text(f"Note: {note}."), style="yellow", soft_wrap=True)
