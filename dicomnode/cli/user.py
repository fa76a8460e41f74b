"""``dicomnode user``: who may sign in to the web side."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dicomnode.archive.users import MIN_PASSWORD, checked_name, checked_password
from dicomnode.cli.options import Config, Json, iso, open_node, out, print_json, print_table
from dicomnode.errors import UsageError
from dicomnode.telemetry.audit import AuditEvent

app = typer.Typer(help="Add, list and disable the users of the web side.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and . _ @ -; capitals make no difference.")]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin.")
]


@app.command()
def add(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="An administrator.")] = False,
    password_stdin: PasswordStdin = False,
    config: Config = None,
) -> None:
    """Add a user, or a disabled one again. The password is asked for twice; it has at least 12 characters.

    Example: dicomnode user add anna --admin
    """
    node = open_node(config)
    name, password = checked_name(name), checked_password(_password(password_stdin))
    node.record(AuditEvent.USER_ADDED, reason=f"user {name}")
    again = node.users.add(name, password, admin=admin)
    out.print("added again" if again else "added")
    if not node.settings.web.auth.method:
        out.print('sign-in is off: set [web] auth = {method = "users"}')


@app.command()
def password(name: Name, password_stdin: PasswordStdin = False, config: Config = None) -> None:
    """Set another password of a user and end the user's sessions.

    Example: dicomnode user password anna
    """
    node = open_node(config)
    name, typed = checked_name(name), checked_password(_password(password_stdin))
    node.record(AuditEvent.PASSWORD_CHANGED, reason=f"user {name}")
    node.users.set_password(name, typed)
    out.print("changed; sessions are ended")


@app.command("list")
def list_(config: Config = None, json: Json = False) -> None:
    """List the users.

    Example: dicomnode user list --json
    """
    node = open_node(config)
    node.record(AuditEvent.USERS_LISTED)
    users = [
        {"name": u.name, "admin": u.admin, "disabled": u.disabled, "created": iso(u.created)} for u in node.users.all()
    ]
    if json:
        print_json({"users": users})
        return
    yes = {True: "yes", False: ""}
    rows = [[str(u["name"]), yes[bool(u["admin"])], yes[bool(u["disabled"])], str(u["created"])] for u in users]
    print_table("users", ["name", "admin", "disabled", "created"], rows)


@app.command()
def disable(name: Name, config: Config = None) -> None:
    """Keep a user from signing in; sessions end at once.

    Example: dicomnode user disable anna
    """
    node = open_node(config)
    name = checked_name(name)
    node.record(AuditEvent.USER_DISABLED, reason=f"user {name}")
    node.users.disable(name)
    out.print("disabled; sessions are ended")


def _password(from_stdin: bool) -> str:
    """From stdin or asked for twice; never an argument, which other processes could read."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the password", advice="add --password-stdin")
    typed: str = typer.prompt(f"password (at least {MIN_PASSWORD} characters)", hide_input=True)
    if typer.prompt("again", hide_input=True) != typed:
        raise UsageError("the two passwords differ", advice="try again")
    return typed
