"""Options that the commands of ``edge-aggregator`` share."""

from pathlib import Path

import click

DIRECTORY = click.option(
    "--dir",
    "directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="The aggregator's directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
