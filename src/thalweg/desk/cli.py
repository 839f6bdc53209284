"""``thalweg desk``: serve the desk on this machine."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from thalweg._core.terminal import user_errors

LOCAL = ("127.0.0.1", "localhost", "::1")


app = typer.Typer(help="The paper pages, the run pages and the API.", invoke_without_command=True)


@app.callback()
def desk(
    context: typer.Context,
    store: Annotated[Path, typer.Option(help="The run store whose runs are shown.")] = Path(
        "runs/thalweg.sqlite"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8600,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines see only what is not loopback.")
    ] = "127.0.0.1",
    data: Annotated[
        Path | None,
        typer.Option(help="The desk's own data; the user's data folder by default.", show_default=False),
    ] = None,
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve the paper pages, the run pages and the API, offline, until interrupted."""
    if context.invoked_subcommand is not None:
        return
    with user_errors():
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, got {port}")
        try:
            import uvicorn

            from thalweg.desk.app import create_app
            from thalweg.desk.database import data_folder
        except ImportError as error:
            raise ValueError(
                f"the desk needs further packages: pip install 'thalweg[desk]' ({error})"
            ) from None
        import socket

        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        site = create_app(store, folder=data or data_folder())
    for one in site.state.problems.all():
        typer.echo(f"warning: {one.source}: {one.what}", err=True)
    if host not in LOCAL:
        typer.echo(f"warning: the desk listens on {host}: whoever reaches this machine can read it", err=True)
    address = f"http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}/papers"
    typer.echo(f"thalweg desk: {address} (Ctrl+C ends it)")
    if open:
        webbrowser.open(address)
    uvicorn.Server(uvicorn.Config(site, log_level="warning")).run(sockets=[listening])
