"""``edge-fleet``: many virtual devices, on a virtual clock or over real MQTT."""

import os

# Before numpy is loaded: one pass is too small for threads to pay.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import click

from broker.commandline import Duration, Identifier, echo_facts, echo_json, run, say
from trainer.params import MAX_DIM

_DATA = click.option(
    "--data", required=True, help="A file of ratings (user, item[, rating[, time]]), or: synthetic."
)
_PROTOCOL = click.option(
    "--protocol",
    type=click.Choice(["published", "clean"]),
    help="Whether training may avoid held-out items.",
)
_ENCODING = click.option("--encoding", type=click.Choice(["float32", "int8"]), help="Of updates.")
_PRESET = click.option(
    "--preset",
    type=click.Choice(["paper"]),
    default="paper",
    show_default=True,
    help="Hyperparameters: those of the paper.",
)
_ALGORITHM = click.option(
    "--algorithm",
    type=click.Choice(["pfedrec"]),
    default="pfedrec",
    show_default=True,
    help="What is trained.",
)
_BUFFER = click.option(
    "--buffer", default=32, show_default=True, type=click.IntRange(1), help="Updates that close a round."
)
_STALENESS = click.option(
    "--max-staleness", default=10, show_default=True, type=click.IntRange(0), help="In versions."
)
_DIM = click.option(
    "--dim", default=32, show_default=True, type=click.IntRange(1, MAX_DIM), help="Width of an embedding."
)
_ITEM_LR = click.option(
    "--item-lr",
    type=click.FloatRange(0.0, min_open=True),
    help="Learning rate of item rows.  [default: the preset's]",
)
_SEED = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**53 - 1), help="Of all random draws."
)
_SAVE_USERS = click.option("--save-users", is_flag=True, help="Write users.npz, too.")
_OUT = click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The run's folder."
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace a run that the folder holds.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfedrec-edge")
def cli() -> None:
    """Run many virtual devices: each the session of a real one.

    \b
    Example:
      edge-fleet simulate --data synthetic --protocol clean --rounds 20 --out runs/first
      edge-fleet run --data synthetic --devices 50 --versions 40 --out runs/live
    """


@cli.command()
@_DATA
@_ALGORITHM
@_PRESET
@_PROTOCOL
@click.option(
    "--mode",
    type=click.Choice(["sync", "buffered"]),
    default="sync",
    show_default=True,
    help="All devices in step, as the paper; or asynchronous.",
)
@_BUFFER
@_STALENESS
@_ENCODING
@click.option(
    "--rounds", default=100, show_default=True, type=click.IntRange(1), help="Passes a device makes."
)
@_DIM
@_ITEM_LR
@_SEED
@_SAVE_USERS
@_OUT
@_OVERWRITE
@_JSON
def simulate(
    data: str, protocol: str | None, encoding: str | None, out: Path, *, save_users: bool, overwrite: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a fleet on a virtual clock, without a broker: the paper's experiment in seconds.

    The published protocol keeps held-out items out of the training negatives, which flatters; clean does
    not (see docs/method.md). A round is one pass of every device.

    \b
    Example:
      edge-fleet simulate --data ratings.dat --preset paper --protocol published --out runs/ml-100k
    """
    from dataclasses import asdict, replace

    from edge.fleet.evaluator import Evaluator
    from edge.fleet.progress import Progress
    from edge.fleet.runfolder import RoundReport, RunFolder
    from edge.fleet.scenario import load_scenario
    from edge.fleet.virtual import Simulation, SimulationSettings
    from trainer.params import paper_hyperparameters

    scenario = load_scenario(data, _protocol(protocol), options["seed"])
    hyperparameters = paper_hyperparameters(scenario.data.n_items)
    if options["item_lr"] is not None:
        hyperparameters = replace(hyperparameters, item_lr=options["item_lr"])
    settings = SimulationSettings(
        hyperparameters=hyperparameters,
        mode=options["mode"],
        buffer=options["buffer"],
        max_staleness=options["max_staleness"],
        encoding=encoding or "float32",
        rounds=options["rounds"],
        dim=options["dim"],
        seed=options["seed"],
    )
    facts = {"algorithm": options["algorithm"], **asdict(settings)}
    config = {
        "command": "simulate",
        "data": data,
        "data_sha256": scenario.sha256,
        "preset": options["preset"],
    }
    evaluator = Evaluator(scenario)
    progress = Progress(settings.rounds, "rounds")

    def on_round(report: RoundReport) -> None:
        folder.add_round(report)
        progress.update(report.number, f"HR@10 {report.quality.test.hr:.3f}")

    simulation = Simulation(scenario, settings, evaluator, on_round)
    folder = RunFolder(out, config | {"protocol": scenario.protocol} | facts, overwrite=overwrite)
    simulation.run()
    progress.close()
    summary = folder.finish(scenario, evaluator, facts, save_users=save_users)
    _show(scenario, summary, out, {}, as_json=as_json)


@cli.command(name="run")
@_DATA
@click.option("--devices", type=click.IntRange(1), help="The first N users.  [default: all]")
@click.option(
    "--broker", default="auto", show_default=True, help="auto, mosquitto, embedded, mqtt://HOST:PORT"
)
@click.option("--port", type=click.IntRange(1, 65535), help="Of our own broker.  [default: a free one]")
@click.option(
    "--fleet", default="edge-fleet", show_default=True, type=Identifier("the fleet name"), help="Its name."
)
@_ALGORITHM
@_PRESET
@_PROTOCOL
@_BUFFER
@_STALENESS
@_ENCODING
@click.option("--versions", default=100, show_default=True, type=click.IntRange(1), help="To run for.")
@click.option(
    "--deadline",
    "deadline_s",
    default=2.0,
    show_default=True,
    type=Duration(0.01, 30.0),
    help="Seconds; closes a round too.",
)
@click.option("--concurrency", type=click.IntRange(1), help="Devices at work at once.  [default: 2 x buffer]")
@_DIM
@_ITEM_LR
@_SEED
@_SAVE_USERS
@_OUT
@_OVERWRITE
@_JSON
def run_command(
    data: str, protocol: str | None, encoding: str | None, out: Path, *, save_users: bool, overwrite: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a fleet over real MQTT: a broker, an aggregator process, and all devices in this process.

    At the end every update is accounted for and every device holds the newest version.

    \b
    Example:
      edge-fleet run --data synthetic --devices 50 --versions 40 --out runs/live
    """
    from edge.fleet.livecommand import LiveOptions, run_live

    live_options = LiveOptions(
        data=data, protocol=_protocol(protocol), encoding=encoding or "int8", **options
    )
    with tempfile.TemporaryDirectory(prefix="edge-fleet-") as directory:
        outcome = asyncio.run(
            run_live(live_options, out, Path(directory), overwrite=overwrite, save_users=save_users, say=say)
        )
    _show(outcome.scenario, outcome.summary, out, outcome.ledger, as_json=as_json)


def _protocol(given: str | None) -> Any:
    if given is None:
        say("protocol clean: held-out items may be drawn as negatives, as on a real device")
    return given or "clean"


def _show(
    scenario: Any, summary: dict[str, Any], out: Path, ledger: dict[str, Any], *, as_json: bool
) -> None:
    from trainer.evaluation import popularity_metrics

    popularity = popularity_metrics(scenario.split, scenario.test)
    beside = {"popularity": {"hr@10": popularity.hr, "ndcg@10": popularity.ndcg}}
    if as_json:
        echo_json(summary | beside | ({"ledger": ledger} if ledger else {}))
        return
    own, shared = summary["test"]["own"], summary["test"]["shared"]
    facts = {
        "data": "{name}: {users} users, {items} items, {interactions} interactions".format(
            **summary["dataset"]
        ),
        "best round": f"{summary['best_round']} of {summary['rounds']} by validation",
        "own table": _shown(own["sampled"]),
        "shared table": _shown(shared["sampled"]),
        "popularity": _shown(beside["popularity"]),
        "full ranking": _shown(own["full"]),
        "seconds a round": f"{summary['seconds_per_round']['median']:.3f}",
        "bytes an update": f"{summary['bytes_up_per_update']:.0f}",
        "peak memory": f"{summary['peak_rss_mb']:.0f} MB",
        "folder": str(out),
    }
    echo_facts(facts)
    if ledger:
        click.echo(
            "ledger: {made} updates made = {counted} counted + {stale} stale + {rejected} rejected; "
            "all {devices} devices hold version {version}".format(**ledger)
        )


def _shown(figures: dict[str, float]) -> str:
    return f"HR@10 {figures['hr@10']:.4f}, NDCG@10 {figures['ndcg@10']:.4f}"


def main() -> None:
    """Run ``edge-fleet``."""
    run(cli, "edge-fleet")
