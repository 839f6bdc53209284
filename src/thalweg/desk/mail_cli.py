"""``thalweg desk digest`` and ``thalweg desk mail``: send what is due, and try the settings."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg._core.terminal import user_errors

if TYPE_CHECKING:
    from thalweg.desk.database import Database
    from thalweg.desk.settings import MailSettings

Data = Annotated[
    Path | None,
    typer.Option(help="The desk's own data; the user's data folder by default.", show_default=False),
]
Public = Annotated[
    str,
    typer.Option("--public", help="Where readers reach the desk; links begin with it.", show_default=False),
]
DryRun = Annotated[
    Path | None,
    typer.Option(help="Write .eml files into this folder; send nothing.", show_default=False),
]

# The parts of the desk whose tables a digest reads or writes.
TABLES = ("people", "votes", "comments", "subscriptions", "ledger", "novelty")

app = typer.Typer(help="Mail of the desk.", no_args_is_help=True)


def digest(
    dry_run: DryRun = None,
    daily: Annotated[bool, typer.Option("--daily", help="Daily subscribers alone.")] = False,
    weekly: Annotated[bool, typer.Option("--weekly", help="Weekly subscribers alone.")] = False,
    most: Annotated[int, typer.Option(min=1, max=200, help="Papers that a mail shows.")] = 20,
    public: Public = "",
    data: Data = None,
) -> None:
    """Mail subscribers what is new for them; run it once a day, or as often as you like."""
    with user_errors("thalweg desk digest"):
        import sqlite3

        if daily and weekly:
            raise ValueError("one of --daily and --weekly can be given, or neither for all")
        every = "daily" if daily else "weekly" if weekly else None
        database, settings = _opened(data, public, needs_server=dry_run is None)
        from thalweg.desk.delivery import NoServer
        from thalweg.desk.library import Library
        from thalweg.desk.postman import Busy, Postman
        from thalweg.desk.problems import Problems
        from thalweg.desk.shelf import Shelf

        problems = Problems(database)
        postman = Postman(database, Shelf(Library(database), problems), settings, problems, most)
        try:
            if dry_run is not None:
                written = postman.dry_run(dry_run, every)
                typer.echo(f"{len(written)} {_messages(len(written))} in {dry_run}; nothing was sent")
                return
            postman.digests(every)
        except Busy:
            typer.echo("another process is sending digests; nothing to do")
            return
        except NoServer as error:
            raise ValueError(
                f"{error} ({settings.host}:{settings.port}); what was not sent is sent next time"
            ) from None
        except sqlite3.Error as error:
            # The catalog's news alone would be sent for all, and what was imported since would never be.
            problems.report("digest", f"nothing more was sent: {error}")
            raise OSError(f"{database.path} cannot be used: {error}; nothing more was sent") from None
        finally:
            if postman.counts.total():
                typer.echo(", ".join(f"{name}: {count}" for name, count in sorted(postman.counts.items())))
    if not postman.counts.total():
        typer.echo("nobody to write to")


@app.command()
def test(
    address: Annotated[str, typer.Argument(help="Where the message goes.")],
    dry_run: DryRun = None,
    public: Public = "",
    data: Data = None,
) -> None:
    """Send one message with the settings that digests use."""
    with user_errors("thalweg desk mail"):
        _, settings = _opened(data, public, needs_server=dry_run is None)
        from thalweg.desk.delivery import Delivery, NoServer
        from thalweg.desk.mail import mail_message, save_message
        from thalweg.desk.mailbox import mail_address

        to = mail_address(address)
        message = mail_message(settings, to, "The desk can send mail", "test", time.time())
        if dry_run is not None:
            typer.echo(f"written: {save_message(message, dry_run, 'test')}")
            return
        try:
            with Delivery(settings) as delivery:
                outcome = delivery.send(message, to)
        except NoServer as error:
            raise ValueError(f"{error} ({settings.host}:{settings.port})") from None
        if outcome.state != "sent":
            raise ValueError(
                f"the mail server did not take the message ({outcome.code or 'the connection broke'})"
            )
    typer.echo(f"sent to {to} by {settings.host}:{settings.port}; look into the mailbox")


@app.command()
def allow(
    address: Annotated[str, typer.Argument(help="Somebody who had asked never to be written to.")],
    data: Data = None,
) -> None:
    """Let an address subscribe again that was never to be written to."""
    with user_errors("thalweg desk mail"):
        from thalweg.desk.subscriptions import Subscriptions

        known = Subscriptions(_database(data)).allow(address)
    typer.echo("it can subscribe again" if known else "it had not asked to be left alone")


def _opened(data: Path | None, public: str, *, needs_server: bool) -> tuple[Database, MailSettings]:
    database = _database(data)
    from thalweg.desk.own_address import address_of
    from thalweg.desk.settings import MailSettings, mail_settings, public_address

    settings = mail_settings(database.folder, public_url=public)
    if settings is None and not needs_server:
        address = public_address(public or address_of(database.folder) or "http://127.0.0.1:8600")
        settings = MailSettings("localhost", 25, "none", "thalweg desk <desk@localhost>", address)
    if settings is None:
        raise ValueError(
            f'a mail server must be named: host = "…" in {database.folder / "mail.toml"}, '
            "or THALWEG_MAIL_HOST; --dry-run FOLDER needs none"
        )
    return database, settings


def _database(data: Path | None) -> Database:
    import sqlite3

    try:
        from thalweg.desk.database import database_in

        database = database_in(data)
        for part in TABLES:
            import_module(f"thalweg.desk.{part}").prepare(database)
    except ImportError as error:
        raise ValueError(f"the desk needs further packages: pip install 'thalweg[desk]' ({error})") from None
    except sqlite3.Error as error:
        raise OSError(f"{data} cannot be used: {error}") from None
    return database


def _messages(count: int) -> str:
    return "message" if count == 1 else "messages"
