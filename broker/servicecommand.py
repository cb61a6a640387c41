"""``install-service``, which the programs with a ``start`` have in common."""

import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import click

from broker import unit
from broker.commandline import PathName, say


def install_service(
    program: str, default_name: str, unit_of: Callable[[Path, str | None], unit.Unit], example: str
) -> click.Command:
    """Make the command.

    Parameters
    ----------
    default_name : str
        Of the service.
    unit_of : callable
        Gives the unit of a directory and a user.
    example : str
        Calls of it, for its help.
    """

    def run(
        directory: Path,
        user: str | None,
        name: str,
        unit_dir: Path | None,
        *,
        only_print: bool,
        uninstall: bool,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
            raise click.UsageError(
                f"{name!r} is no name of a service; letters, digits, '_', '.' and '-' make one"
            )
        if user is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", user):
            raise click.UsageError(f"{user!r} is no name of a user")
        path = (unit_dir or unit.UNIT_DIRECTORY) / f"{name}.service"
        if uninstall:
            unit.uninstall(path, program)
            say(f"{path} is removed; end the service with: systemctl stop {name}; systemctl daemon-reload")
            return
        made = unit_of(directory, user)
        if only_print:
            unit.require_fit(made)
            click.echo(made.text(), nl=False)
            return
        unit.install(made, path)
        say(f"{path} is written; start it with: systemctl daemon-reload && systemctl enable --now {name}")

    return click.Command(
        "install-service",
        callback=run,
        params=_options(default_name),
        help=(
            "Write a systemd unit that runs `start`: watched over, restarted, and allowed little.\n\n"
            "By default systemd makes a user for it; the directory then is directly below /var/lib.\n\n"
            f"\b\n{dedent(example).strip()}"
        ),
    )


def _options(default_name: str) -> list[click.Parameter]:
    folder = PathName(file_okay=False)
    return [
        click.Option(
            ["--dir", "directory"],
            required=True,
            type=PathName(file_okay=False, readable=False),
            help="The service's directory.",
        ),
        click.Option(["--user"], help="Who runs it.  [default: a user of its own, made by systemd]"),
        click.Option(["--name"], default=default_name, show_default=True, help="Of the service."),
        click.Option(
            ["--unit-dir"],
            type=folder,
            help="Where the unit is written.  [default: /etc/systemd/system]",
        ),
        click.Option(
            ["--print", "only_print"], is_flag=True, help="Write the unit to stdout, and nothing else."
        ),
        click.Option(["--uninstall"], is_flag=True, help="Remove the unit; the directory stays."),
    ]
