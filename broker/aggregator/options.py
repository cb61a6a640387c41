"""Options that the commands of ``edge-aggregator`` share."""

import click

from broker.commandline import PathName

DIRECTORY = click.option(
    "--dir",
    "directory",
    required=True,
    type=PathName(file_okay=False, readable=False),
    help="The aggregator's directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
