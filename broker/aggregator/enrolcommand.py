"""``edge-aggregator enrol``: certificates for devices that bring a claim."""

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from broker.aggregator.options import DIRECTORY
from broker.claim import ENROLMENT_PORT
from broker.commandline import say


@click.command()
@DIRECTORY
@click.option("--listen", help="Address to listen on.  [default: as the broker]")
@click.option(
    "--port", default=ENROLMENT_PORT, show_default=True, type=click.IntRange(0, 65535), help="HTTPS."
)
def enrol(directory: Path, listen: str | None, port: int) -> None:
    """Give certificates to devices that bring a claim, until SIGTERM or Ctrl-C.

    Run it, beside `start` or without, as long as devices are being set up: while it runs, the authority's key
    is on a machine that strangers can talk to.

    \b
    Example:
      firmware-tools provision claims --dir shop --count 20 --out claims.csv
      edge-aggregator enrol --dir shop --listen 0.0.0.0
    """
    from broker.aggregator.directory import load_config
    from broker.aggregator.enrolment import Enrolment, enrolling
    from broker.aggregator.security import AUTHORITY_NAME, broker_for_devices
    from broker.authority.authority import Authority
    from broker.journal import set_up_logging
    from broker.servicing import Service
    from broker.supervisor import Supervisor

    set_up_logging(verbose=False)
    config = load_config(directory, os.environ)
    service = Service(Supervisor(), lambda: config, say)
    service.listen()
    authority = Authority(directory / AUTHORITY_NAME)
    authority.finish_renewal()
    broker = broker_for_devices(authority, config)
    enrolment = Enrolment(authority, broker, lambda: datetime.now(UTC), say)
    host = listen or config.listen
    with enrolling(enrolment, authority, host, port) as found:
        say(f"claims are answered at {host}:{found}")
        service.stop.wait()
    service.end()
    say("stopped")
