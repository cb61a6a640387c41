"""``firmware-tools``: build-time commands for what devices run."""

import hashlib
from pathlib import Path

import click

from broker.commandline import echo_facts, echo_json, run
from broker.errors import InputError
from broker.storage import write_atomically
from firmware_tools.convert import build_scorer


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfedrec-edge")
def cli() -> None:
    """Build what devices run. Needs the [firmware] extra; a device does not.

    \b
    Example:
      firmware-tools build --out scorer.tflite
    """


@cli.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to write the model.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def build(*, out: Path, force: bool, as_json: bool) -> None:
    """Build the TFLite model that scores a catalogue.

    The same TensorFlow release gives the same bytes. One file serves every catalogue and every user.

    \b
    Example:
      firmware-tools build --out scorer.tflite
    """
    if out.exists() and not force:
        raise InputError(f"{out} exists and was left as it is; give --force to replace it")
    model = build_scorer()
    write_atomically(out, model)
    facts = {"file": str(out), "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
    if as_json:
        echo_json(facts)
    else:
        echo_facts(facts)


def main() -> None:
    """Run the command line."""
    run(cli, "firmware-tools")
