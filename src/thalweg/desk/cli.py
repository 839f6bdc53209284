"""``thalweg desk``: serve the desk on this machine."""

from __future__ import annotations

import ipaddress
import signal
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from thalweg._core.blas import one_blas_thread
from thalweg._core.terminal import user_errors
from thalweg.desk.mail_cli import app as mail_app
from thalweg.desk.mail_cli import digest
from thalweg.desk.people_cli import add_commands

if TYPE_CHECKING:
    from thalweg.desk.problems import Problem

LOCAL = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")


app = typer.Typer(help="The paper pages, the run pages and the API.", invoke_without_command=True)
add_commands(app)
app.command()(digest)
app.add_typer(mail_app, name="mail")


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
    public: Annotated[
        str,
        typer.Option(envvar="THALWEG_PUBLIC_URL", help="The address under which people reach it, for links."),
    ] = "",
    proxy: Annotated[
        str, typer.Option(help="Addresses of proxies whose X-Forwarded-For and -Proto are believed.")
    ] = "",
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve the paper pages, the run pages and the API, offline, until interrupted."""
    one_blas_thread()
    if context.invoked_subcommand is not None:
        with user_errors():
            _hand_on(context, data)
        return
    with user_errors():
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, got {port}")
        _check_proxies(proxy)
        try:
            import uvicorn

            from thalweg.desk.app import create_app
            from thalweg.desk.database import data_folder
            from thalweg.desk.own_address import kept_address, reached_at
            from thalweg.desk.settings import public_address
        except ImportError as error:
            raise ValueError(
                f"the desk needs further packages: pip install 'thalweg[desk]' ({error})"
            ) from None
        import socket

        # asyncio sends small packets at once, not 40 ms later, on sockets that say they are TCP's.
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            # From here on who asks waits, and is not refused, until the pages are ready.
            listening.listen()
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        public = public_address(public) if public else ""
        folder = data or data_folder()
        site = create_app(store, folder=folder, public=public or None, hosts=_names(host, public))
    for line in _troubles(site.state.problems.all()):
        typer.echo(f"warning: {line}", err=True)
    if host not in LOCAL:
        typer.echo(_warning(host, public), err=True)
    port = listening.getsockname()[1]
    address = reached_at(host, port)
    # The access log would hold invitations and the addresses of readers. A proxy is believed only if named.
    trusted: dict[str, Any] = {"proxy_headers": bool(proxy), "forwarded_allow_ips": proxy or None}
    config = uvicorn.Config(site, log_level="warning", access_log=False, server_header=False, **trusted)
    server = uvicorn.Server(config)
    _end_on_signals(server)
    with kept_address(folder, (urlsplit(address).hostname or host, port), public or address):
        typer.echo(f"thalweg desk: {address}/papers (Ctrl+C ends it)")
        if open:
            webbrowser.open(f"{address}/papers")
        server.run(sockets=[listening])


def _end_on_signals(server: Any) -> None:
    """Let whoever ends the desk end it at any moment, also before the server listens to signals itself.

    Uvicorn raises the signal that ended it once more; with Python's own handlers nothing more would run then.
    """

    def end(*_: Any) -> None:
        server.should_exit = True

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, end)


def _hand_on(context: typer.Context, data: Path | None) -> None:
    """Let a subcommand work on the data that are named before it; refuse what would mean nothing to it."""
    here = [one for one in context.command.params if _typed(context, one.name or "") and one.name != "data"]
    if here:
        name = context.invoked_subcommand
        options = ", ".join(one.opts[0] for one in here)
        raise ValueError(
            f"{options} before {name!r} is for the desk that serves pages; options of {name} stand after "
            f"it: thalweg desk {name} --help"
        )
    if data is not None:
        context.default_map = _defaults(context.command, {"data": data})


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _defaults(command: Any, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` as defaults of every command below this one."""
    below = getattr(command, "commands", {})
    return values | {name: _defaults(one, values) for name, one in below.items()}


def _check_proxies(given: str) -> None:
    """Refuse what no client's address could ever be, so that nobody believes that a proxy is believed."""
    for one in map(str.strip, given.split(",") if given else ()):
        try:
            if one != "*":
                ipaddress.ip_network(one)
        except ValueError:
            raise ValueError(
                f"--proxy must be addresses such as 10.0.0.5 or networks such as 10.0.0.0/8, separated by "
                f"commas, or * for any; got {one!r}"
            ) from None


def _troubles(problems: list[Problem]) -> list[str]:
    """A line for each part that had any, with the latest."""
    by_source: dict[str, list[str]] = {}
    for one in problems:
        by_source.setdefault(one.source, []).append(one.what)
    return [
        f"{source}: {what[0]}" + (f" (and {len(what) - 1} more on /health)" if what[1:] else "")
        for source, what in by_source.items()
    ]


def _names(host: str, public: str) -> list[str] | None:
    """By which names it may be asked: another site whose name is made to lead here may not read it."""
    if host in EVERYWHERE and not public:
        return None
    own = [] if host in EVERYWHERE else [host]
    names = [*LOCAL, *own, *([urlsplit(public).hostname or ""] if public else [])]
    return [f"[{one}]" if ":" in one else one for one in names]


def _warning(host: str, public: str) -> str:
    lines = [
        f"warning: the desk listens on {host}: whoever reaches this machine can read papers, runs, comments.",
        "         Without https, passwords and sessions cross the network as they are: put a proxy with",
        "         https before it and name both, --public https://NAME --proxy ADDRESS.",
    ]
    if host in EVERYWHERE and not public:
        lines.append("         Without --public any name that leads here is answered.")
    return "\n".join(lines)
