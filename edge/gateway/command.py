"""``edge-client gateway``: boards on serial lines as devices of the fleet."""

from pathlib import Path

import click

from broker.commandline import PathName, say


@click.command()
@click.option(
    "--dir",
    "directory",
    required=True,
    type=PathName(file_okay=False, readable=False),
    help="Holds a device's directory for each board, named after its id; made with `edge-client init`.",
)
@click.option(
    "--serial",
    "ports",
    required=True,
    multiple=True,
    help="Where a board is: /dev/ttyACM0, unix:PATH or tcp:HOST:PORT; may be given again.",
)
@click.option("--baud", default=115200, show_default=True, help="Of all serial devices.")
@click.option("--verbose", is_flag=True, help="Log more.")
def gateway(directory: Path, ports: tuple[str, ...], baud: int, *, verbose: bool) -> None:
    """Carry boards into the fleet, each as a device of its own, until SIGTERM or Ctrl-C.

    A board learns by itself, and gives an update; its interactions stay on it. Boards may come and go; a port
    that is away is waited for.

    \b
    Example:
      edge-client init --dir me/stove --device-id stove --fleet shop --broker mqtt://192.168.1.10:1883
      edge-client gateway --dir me --serial /dev/ttyACM0
    """
    from broker.errors import InputError
    from broker.journal import set_up_logging
    from broker.servicing import Service
    from broker.supervisor import Supervisor
    from edge.gateway.port import Port
    from edge.gateway.service import Gateway

    set_up_logging(verbose=verbose)
    lines = [Port(text, baud) for text in dict.fromkeys(ports)]
    if not directory.is_dir():
        raise InputError(
            f"{directory} is no directory; make it with a board's: edge-client init --dir {directory}/ID ..."
        )
    service: Service[None] = Service(Supervisor(), lambda: None, say)
    service.listen()
    serving = Gateway(lines, directory, say)
    say(f"gateway of {len(lines)} serial port{'s' * (len(lines) != 1)}")
    try:
        serving.run(service.stop, lambda: service.each_round(serving))
    finally:
        service.end()
    say("stopped")
