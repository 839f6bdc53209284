"""``thalweg desk invite``, ``people``, ``role``, ``remove``: who has the machine decides who has a name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg._core.terminal import print_table, user_errors

if TYPE_CHECKING:
    from thalweg.desk.database import Database

Data = Annotated[
    Path | None,
    typer.Option(help="The desk's own data; the user's data folder by default.", show_default=False),
]


def add_commands(app: typer.Typer) -> None:
    """Put the commands into ``thalweg desk``."""
    app.command("invite")(invite)
    app.command("people")(people)
    app.command("role")(role)
    app.command("remove")(remove)


def invite(
    name: Annotated[str, typer.Argument(help="The name that is shown; who joins may change it.")],
    role: Annotated[str, typer.Option(help="member, moderator or owner.")] = "member",
    new_password: Annotated[
        bool, typer.Option("--new-password", help="For somebody who is here: a link to set a new password.")
    ] = False,
    public: Annotated[
        str,
        typer.Option(
            "--public",
            "--address",
            envvar="THALWEG_PUBLIC_URL",
            help="Where people reach the desk; by default as the desk that runs has it.",
        ),
    ] = "",
    data: Data = None,
) -> None:
    """Print a link, good once and for seven days, by which somebody joins."""
    with user_errors():
        from thalweg.desk.own_address import address_of
        from thalweg.desk.people import INVITED_FOR, invite, renew
        from thalweg.desk.settings import public_address

        database = _database(data)
        base = public_address(public) if public else address_of(database.folder)
        if base is None:
            raise ValueError(
                f"no desk runs over {database.folder}, so that a link would lead nowhere: start it with "
                "thalweg desk, or say where people reach it by --public https://NAME"
            )
        token = renew(database, name) if new_password else invite(database, name, role)
    until = time.strftime("%Y-%m-%d", time.localtime(time.time() + INVITED_FOR))
    typer.echo(f"{base}/join/{token}")
    typer.echo(f"for {name}, once, until {until}; who has the link can use it", err=True)


def people(data: Data = None) -> None:
    """List who has a name on this desk, and who was invited and has not come yet."""
    with user_errors():
        from thalweg.desk.invited import open_invitations
        from thalweg.desk.people import everyone

        database = _database(data)
        found, invited = everyone(database), open_invitations(database)
    if found:
        print_table(("name", "role", "since"), ((one.name, one.role, _day(one.since)) for one in found))
    else:
        typer.echo("nobody yet, so the desk is read-only: thalweg desk invite NAME --role owner")
    if joining := [one for one in invited if one.person is None]:
        typer.echo("\ninvited; thalweg desk remove NAME takes an invitation back")
        print_table(("name", "role", "until"), ((one.name, one.role, _day(one.expires)) for one in joining))
    if renewing := [f"{one.name} until {_day(one.expires)}" for one in invited if one.person is not None]:
        typer.echo(f"\nmay set a new password by a link: {', '.join(renewing)}")


def role(
    name: Annotated[str, typer.Argument(help="Whose role changes.")],
    new: Annotated[str, typer.Argument(metavar="ROLE", help="member, moderator or owner.")],
    data: Data = None,
) -> None:
    """Give somebody another role; where they are signed in, it holds at once."""
    with user_errors():
        from thalweg.desk.people import change_role, named

        database = _database(data)
        person = named(database, name)
        change_role(database, person.id, new)
    typer.echo(f"{person.name} is {new} now; was {person.role}")


def remove(
    name: Annotated[str, typer.Argument(help="Whose name, or whose invitation, goes.")], data: Data = None
) -> None:
    """Remove somebody, signed out everywhere; their votes go, their comments stay without a name.

    Of somebody who was invited and has not come yet, take the invitation back.
    """
    with user_errors():
        from thalweg.desk.invited import withdraw
        from thalweg.desk.people import named, remove

        database = _database(data)
        try:
            person = named(database, name)
        except ValueError:
            if not withdraw(database, name):
                raise
            typer.echo(f"took back the invitation of {name}; its link leads nowhere now")
            return
        remove(database, person.id)
    typer.echo(f"removed {person.name}")


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def _database(data: Path | None) -> Database:
    from thalweg.desk.comments import prepare as prepare_comments
    from thalweg.desk.database import database_in
    from thalweg.desk.people import prepare as prepare_people
    from thalweg.desk.votes import prepare as prepare_votes

    database = database_in(data)
    # A person's votes and comments hang on them: all three tables have to be there when one goes.
    for prepare in (prepare_people, prepare_votes, prepare_comments):
        prepare(database)
    return database
