"""``thalweg``: the command line."""

from __future__ import annotations

import os
import shlex
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import thalweg
from thalweg._core.terminal import console, print_any_letter, print_whole, progress_bar, user_errors
from thalweg.desk.cli import app as desk_app
from thalweg.desk.index_cli import index
from thalweg.desk.ingest_cli import fetch, import_papers
from thalweg.desk.repair_cli import repair
from thalweg.forecast import forecast
from thalweg.papers.cli import app as papers_app
from thalweg.plan import plan
from thalweg.studies.cli import app as studies_app

if TYPE_CHECKING:
    from thalweg.watch import Finding

app = typer.Typer(
    help="Watch a training run, name what happens, apply the published remedy, see what it really does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(papers_app, name="papers")
app.add_typer(studies_app, name="study")
app.add_typer(desk_app, name="desk")
COLOURS = {"info": "cyan", "warning": "yellow", "critical": "red"}
STORE = Path("runs") / "thalweg.sqlite"


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the run store and the report go.")] = Path("runs/demo"),
) -> None:
    """Watch a run fail, apply the remedy that the finding names, and compare (about half a minute)."""
    screen = console()
    screen.print("An MLP learns modular addition with AdamW and no weight decay, watched.\n")
    with user_errors():
        from thalweg.demo import demo as run_demo

        with progress_bar(screen) as bar:
            rows: dict[str, Any] = {}
            said: set[str] = set()

            def progress(name: str, step: int, steps: int) -> None:
                if name not in rows:
                    rows[name] = bar.add_task({"before": "AdamW", "after": "remedy"}[name], total=steps)
                bar.update(rows[name], completed=step)

            outcomes, path = run_demo(
                folder, progress=progress, on_finding=lambda one: _say(screen, one, said)
            )
    table = Table(title="before and after")
    lines = [one.row() for one in outcomes]
    table.add_column("")
    for line in lines:
        table.add_column(line["run"], justify="right")
    for key in list(lines[0])[1:]:
        table.add_row(key, *(line[key] for line in lines))
    print_whole(screen, table)
    screen.print(f"report: {path}", soft_wrap=True)
    screen.print(
        f"live pages: thalweg desk --store {shlex.quote(str(folder / 'run.sqlite'))}", soft_wrap=True
    )


# What stands behind the script is the script's, even where it is called like an option of ours.
@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def run(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(help="A Python training script; what follows are its own arguments.")
    ],
    module: Annotated[
        bool, typer.Option("-m", help="The script is the name of a module, as for python -m.")
    ] = False,
    budget: Annotated[float, typer.Option(help="Seconds of watching per second of training.")] = 0.03,
    store: Annotated[Path, typer.Option(help="The run store (SQLite).")] = STORE,
    report: Annotated[Path | None, typer.Option(help="Also write a page about the run.")] = None,
) -> None:
    """Watch a training script without changing it."""
    screen = console(stderr=True)
    code = 0
    with user_errors():
        from thalweg.report._whole_file import check_page
        from thalweg.watch import RunStore, run_script
        from thalweg.watch.script import script_file

        RunStore(store, write=True).close()
        file = script_file(script, module)
        if not 0 <= budget < float("inf"):
            raise ValueError(f"budget must be in [0, inf), got {budget}")
        if report is not None:
            check_page("--report", report)
            report = report.absolute()
        # The script may go to another folder.
        place = store.absolute()
    arguments = context.args[1:] if context.args[:1] == ["--"] else context.args
    runs: list[Any] = []
    said: set[str] = set()
    try:
        run_script(
            script,
            arguments,
            module=module,
            runs=runs,
            budget=budget,
            store=place,
            on_finding=lambda one: _say(screen, one, said),
        )
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            typer.echo(stop.code, err=True)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        # The script's own error, shown as Python would, from the script's first line on.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != str(file):
            trace = trace.tb_next
        unread = isinstance(error, SyntaxError)
        traceback.print_exception(type(error), error, trace or (None if unread else error.__traceback__))
        code = 1
    # A log that cannot be written any more is no failure of the training.
    with suppress(OSError):
        _summary(screen, runs, store)
    if report is not None and runs:
        with user_errors():
            from thalweg.report import write_report

            written = write_report(
                place, report, runs=[one.id for one in runs], title=f"{script.name}, watched"
            )
            screen.print(f"report: {written}", soft_wrap=True)
    raise typer.Exit(code)


@app.command()
def report(
    store: Annotated[Path, typer.Argument(help="A run store.")] = STORE,
    run: Annotated[
        list[int] | None, typer.Option(help="Id of a run; several to compare. The latest by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("runs/report.html"),
) -> None:
    """Write a page about runs in a store."""
    with user_errors():
        from thalweg.report import write_report
        from thalweg.report._whole_file import check_page

        check_page("--out", out)
        typer.echo(f"report: {write_report(store, out, runs=run or None)}")


papers_app.command()(fetch)
papers_app.command("import")(import_papers)
papers_app.command()(index)
papers_app.command()(repair)
app.command()(plan)
app.command()(forecast)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand != "run":  # where the output is a script's own
        print_any_letter()
    if show:
        typer.echo(f"thalweg {thalweg.__version__}")
        raise typer.Exit


def _summary(screen: Console, runs: list[Any], store: Path) -> None:
    if not runs:
        screen.print("thalweg: no optimizer took a step, so there was nothing to watch")
        return
    for one in runs:
        count = len(one.findings)
        words = f"{one.step} steps, {count or 'no'} finding{'' if count == 1 else 's'}, "
        screen.print(f"thalweg: {escape(one.name)}: {words}{one.budget.spent:.1%} of the time spent watching")
        for name, why in one.left_out().items():
            screen.print(f"  {name} {escape(why)}", style="dim", soft_wrap=True)
    screen.print(f"readings: {store}", soft_wrap=True)


def _say(screen: Console, finding: Finding, said: set[str]) -> None:
    """Print a finding; what to try is told once a name."""
    head, *rest = str(finding).splitlines()
    rest = [] if finding.name in said else rest
    said.add(finding.name)
    screen.print(escape(head), style=COLOURS[finding.severity], soft_wrap=True, highlight=False)
    if rest:
        screen.print(escape("\n".join(rest)), style="dim", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point of the ``thalweg`` command."""
    try:
        app()
    except OSError as error:
        # Such as a disk that is full; what waits to be written must not fail once more at the end.
        typer.echo(f"thalweg: the output cannot be written: {error}", err=True)
        os._exit(1)
