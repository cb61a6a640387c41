"""``firmware-tools``: build-time commands for what devices run."""

import hashlib
import json
from pathlib import Path

import click

from broker.commandline import echo_facts, echo_json, run, say
from broker.errors import InputError
from broker.storage import write_atomically
from firmware_tools import measuring
from firmware_tools.c_export import (
    QUANTISATIONS,
    Exported,
    Quantisation,
    export,
    make_model,
    read_table,
    read_users,
)
from firmware_tools.convert import build_scorer
from firmware_tools.targets import TARGETS


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfedrec-edge")
def cli() -> None:
    """Build what devices and microcontrollers run. `build` needs the [firmware] extra; a device does not.

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


@cli.command(name="export-c")
@click.option(
    "--model",
    "model_file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A model.npz: of a simulation's folder, or of edge-aggregator export.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to write the project.",
)
@click.option(
    "--target",
    default="host",
    show_default=True,
    type=click.Choice(list(TARGETS)),
    help="The board's processor.",
)
@click.option(
    "--quant",
    default="int8",
    show_default=True,
    type=click.Choice(QUANTISATIONS),
    help="How the item table is kept.",
)
@click.option("--items", type=click.IntRange(min=2), help="Only the table's first items.  [default: all]")
@click.option(
    "--users",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A users.npz: a new user starts from their mean score function.  [default: from a seeded one]",
)
@click.option(
    "--vectors",
    default=1000,
    show_default=True,
    type=click.IntRange(8, 100_000),
    help="Score vectors whose ten best the self-test compares.",
)
@click.option("--no-build", is_flag=True, help="Write the files only.")
@click.option("--force", is_flag=True, help="Write into DIR though something is in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export_c(
    *,
    model_file: Path,
    out: Path,
    target: str,
    quant: Quantisation,
    items: int | None,
    users: Path | None,
    vectors: int,
    no_build: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a model as a project in C for one board, and measure it there.

    Aligned constant arrays, the core, golden vectors, a self-test, an application and a Makefile. Where the
    board's compiler and QEMU are installed it is built, its self-test is run, and the report tells flash,
    RAM, stack and instructions.

    \b
    Example:
      firmware-tools export-c --model runs/ml-100k/model.npz --target m4f --out board
    """
    board = TARGETS[target]
    table = read_table(model_file, items)
    start = None if users is None else read_users(users, table.shape[1])
    exported = export(out, make_model(table, quant, start), board, vectors=vectors, force=force)
    measured = None if no_build else _measured(exported)
    facts = measuring.report(exported, measured)
    write_atomically(out / "report.json", (json.dumps(facts, indent=1) + "\n").encode())
    if as_json:
        echo_json(facts)
    else:
        echo_facts(measuring.report_text(facts) | {"written": f"{exported.files + 1} files in {out}"})


def _measured(exported: Exported) -> measuring.Measured | None:
    target = exported.target
    install = f"apt-get install {' '.join(target.packages)}"
    missing = target.missing_to_build()
    if missing:
        say(f"not built, as {', '.join(missing)} is missing here: {install}")
        return None
    measuring.build(exported)
    missing = target.missing_to_run()
    if missing:
        say(f"the self-test was not run, as {', '.join(missing)} is missing here: {install}")
        return measuring.sizes(exported)
    return measuring.run(exported)


def main() -> None:
    """Run the command line."""
    run(cli, "firmware-tools")
