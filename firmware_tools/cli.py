"""``firmware-tools``: build-time commands for what devices run."""

import hashlib
import json
from pathlib import Path

import click

from broker.commandline import PathName, echo_facts, echo_json, run, say
from broker.errors import InputError
from broker.storage import read_file, write_atomically
from firmware_tools import inspection, measuring
from firmware_tools.bundlecommand import bundle
from firmware_tools.c_export import (
    QUANTISATIONS,
    Exported,
    Quantisation,
    export,
    make_model,
    read_table,
    read_users,
)
from firmware_tools.convert import CONVERSIONS, Conversion, build_baked, build_scorer
from firmware_tools.provisioncommand import provision
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
    type=PathName(dir_okay=False),
    metavar="FILE",
    help="Where to write the model.",
)
@click.option(
    "--model",
    "model_file",
    type=PathName(dir_okay=False),
    metavar="FILE",
    help="A model.npz whose item table is baked in.  [default: items are an input]",
)
@click.option(
    "--quant",
    default="float32",
    show_default=True,
    type=click.Choice(CONVERSIONS),
    help="How a baked table is kept; int8: inputs and outputs too.",
)
@click.option(
    "--users",
    type=PathName(dir_okay=False),
    metavar="FILE",
    help="A users.npz: the score functions that --quant int8 chooses its scales by.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def build(
    *,
    out: Path,
    model_file: Path | None,
    quant: Conversion,
    users: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build a TFLite model that scores a catalogue.

    Without --model it is the one that devices run: one file serves every catalogue and every user. With it
    the item table is baked in. The same TensorFlow release gives the same bytes.

    \b
    Example:
      firmware-tools build --out scorer.tflite
      firmware-tools build --model model.npz --users users.npz --quant int8 --out scorer-int8.tflite
    """
    if out.exists() and not force:
        raise InputError(f"{out} exists and was left as it was; give --force to replace it")
    if model_file is None:
        if quant != "float32":
            raise InputError(f"--quant {quant} keeps a table in the model; give one with --model")
        model = build_scorer()
    else:
        table = read_table(model_file)
        if quant == "int8" and users is None:
            raise InputError("--quant int8 chooses scales by real score functions; give --users users.npz")
        start = None if users is None else read_users(users, table.shape[1])
        model = build_baked(table, quant, start)
    write_atomically(out, model)
    facts = {"file": str(out), "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
    if as_json:
        echo_json(facts)
    else:
        echo_facts(facts)


@cli.command()
@click.argument("file", type=PathName(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(*, file: Path, as_json: bool) -> None:
    """Tell what is in FILE: a TFLite model, or the model.pfr of an export.

    Tensors, quantisation, operators, sizes, and an estimate of the arena. Needs no TensorFlow.

    \b
    Example:
      firmware-tools inspect scorer.tflite
    """
    content = read_file(file)
    facts, lines = inspection.facts_of(content), inspection.lines_of(content)
    if as_json:
        echo_json(facts)
    else:
        echo_facts(lines)


@cli.command()
@click.option(
    "--run",
    "run_folder",
    required=True,
    type=PathName(file_okay=False),
    metavar="DIR",
    help="The folder of edge-fleet simulate --save-users.",
)
@click.option(
    "--tflite",
    "tflite_files",
    multiple=True,
    type=PathName(dir_okay=False),
    metavar="FILE",
    help="A model with the table baked in, to rank beside the others; may be given several times.",
)
@click.option(
    "--max-loss",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0.0, 100.0),
    help="Points of HR@10 that the C core's integers may cost.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def verify(*, run_folder: Path, tflite_files: tuple[Path, ...], max_loss: float, as_json: bool) -> None:
    """Show that numpy, TFLite and the C core score alike, and what 8 bits cost real users.

    Ranks every user's held-out item of the run among its 99 negatives, in the user's own view; and compares
    the ten best of the catalogue. Code 50 when programs differ by more than 1e-6, or integers cost too much.

    \b
    Example:
      firmware-tools verify --run runs/films
    """
    from firmware_tools import verification

    verdict = verification.verify(run_folder, {str(file): read_file(file) for file in tflite_files})
    if as_json:
        echo_json(verdict.facts)
    else:
        echo_facts(verdict.lines)
    verdict.require(max_loss)


@cli.command(name="export-c")
@click.option(
    "--model",
    "model_file",
    required=True,
    type=PathName(dir_okay=False),
    metavar="FILE",
    help="A model.npz: of a simulation's folder, or of edge-aggregator export.",
)
@click.option(
    "--out",
    required=True,
    type=PathName(file_okay=False),
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
    type=PathName(dir_okay=False),
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


cli.add_command(bundle)
cli.add_command(provision)


def main() -> None:
    """Run the command line."""
    run(cli, "firmware-tools")
