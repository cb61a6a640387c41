"""``edge-fleet``: many virtual devices, on a virtual clock or over real MQTT."""

import os

# Before numpy is loaded: one pass is too small for threads to pay.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import click

from broker.commandline import (
    Duration,
    Identifier,
    PathName,
    Setting,
    echo_facts,
    echo_json,
    run,
    say,
    toml_value,
)
from broker.protocol.encodings import ENCODINGS
from edge.fleet.termination import terminable
from trainer.params import MAX_DIM

ALGORITHM_NAMES = (
    "pfedrec", "pfedrec-joint", "pfedrec-user", "pfedrec-item", "pfedrec-neither",
    "fedmf", "fedmf+dualper", "fedncf", "fedncf+dualper", "fedrecon", "fedrecon+dualper",
    "popularity", "item-knn", "ease", "ials", "mf", "ncf",
)  # fmt: skip
"""As in `trainer.algorithms` and `trainer.baselines`, which a call for help need not load."""
TABLE_NAMES = ("ml-100k", "lastfm-2k", "ablation", "views", "users", "compare")

_DATA = click.option(
    "--data",
    required=True,
    help="A file of ratings (user, item[, rating[, time]]), or: synthetic[:USERSxITEMS[xMEAN]].",
)
_PROTOCOL = click.option(
    "--protocol",
    type=click.Choice(["published", "clean"]),
    help="Whether training may avoid held-out items.",
)
_ENCODING = click.option("--encoding", type=click.Choice(list(ENCODINGS)), help="Of updates.")
_PRESET = click.option(
    "--preset",
    default="device",
    show_default=True,
    help="Settings of training: device, paper, or a file of that form.",
)
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    type=Setting(),
    help="Another value for an entry of the preset; may be given several times.",
)
_BUFFER = click.option(
    "--buffer", default=32, show_default=True, type=click.IntRange(1), help="Updates that close a round."
)
_STALENESS = click.option(
    "--max-staleness", default=10, show_default=True, type=click.IntRange(0), help="In versions."
)
_DIM = click.option(
    "--dim", type=click.IntRange(1, MAX_DIM), help="Width of an embedding.  [default: the preset's]"
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
_OUT = click.option("--out", required=True, type=PathName(file_okay=False), help="The run's folder.")
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
      edge-fleet sweep --data synthetic --protocol clean --set lr=0.05,0.1 --seeds 0,1 --out runs/sweep
      edge-fleet cold-start --data synthetic --protocol clean --out runs/cold
    """


@cli.command()
@_DATA
@click.option(
    "--algorithm",
    default="pfedrec",
    show_default=True,
    type=click.Choice(ALGORITHM_NAMES),
    metavar="NAME",
    help=f"What is trained: {', '.join(ALGORITHM_NAMES)}.",
)
@_PRESET
@_SET
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
@click.option(
    "--server",
    "server",
    multiple=True,
    metavar="KEY=VALUE",
    type=Setting(),
    help="How updates are combined: strategy, clip, similarity, ... (docs/aggregation.md).",
)
@click.option("--robust", is_flag=True, help="The robust preset of the server's settings.")
@click.option(
    "--byzantine", default=0.0, type=click.FloatRange(0.0, 1.0), help="Share of devices that send an attack."
)
@click.option(
    "--attack",
    default="sign-flip",
    show_default=True,
    type=click.Choice(["sign-flip", "scale", "random"]),
    help="What they send.",
)
@click.option(
    "--strength", default=1.0, show_default=True, type=click.FloatRange(0.0, 1e6), help="How strongly."
)
@click.option(
    "--speeds",
    default=0.0,
    type=click.FloatRange(0.0, 3.0),
    help="Spread of log-normal device speeds, a tenth of them ten times slower.  [default: all alike]",
)
@_ENCODING
@click.option("--rounds", type=click.IntRange(1), help="Passes a device makes.  [default: the preset's]")
@_DIM
@_ITEM_LR
@_SEED
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that share the users.",
)
@click.option("--resume", is_flag=True, help="Go on where an earlier call with the same options was stopped.")
@_SAVE_USERS
@_OUT
@_OVERWRITE
@_JSON
def simulate(
    overrides: tuple[tuple[str, Any], ...], protocol: str | None, encoding: str | None, rounds: int | None,
    dim: int | None, server: tuple[tuple[str, Any], ...], out: Path, *, resume: bool, save_users: bool,
    overwrite: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a fleet on a virtual clock, without a broker: the paper's experiments in seconds.

    The published protocol keeps held-out items out of the training negatives, which flatters; clean does
    not (see docs/method.md). A round is one pass of every device.

    \b
    Example:
      edge-fleet simulate --data ratings.dat --preset paper --protocol published --out runs/ml-100k
    """
    from edge.fleet.simulatecommand import SimulateOptions, run_simulation

    given = {"rounds": rounds, "dim": dim}
    simulated = run_simulation(
        SimulateOptions(
            protocol=_protocol(protocol),
            encoding=encoding or "float32",
            server=dict(server),
            overrides=dict(overrides) | {name: value for name, value in given.items() if value is not None},
            **options,
        ),
        out,
        overwrite=overwrite,
        resume=resume,
        save_users=save_users,
    )
    _show(simulated.scenario, simulated.summary, out, {}, as_json=as_json)


@cli.command(name="run")
@_DATA
@click.option("--devices", type=click.IntRange(1, 100_000), help="The first N users.  [default: all]")
@click.option(
    "--broker", default="auto", show_default=True, help="auto, mosquitto, embedded, mqtt://HOST:PORT"
)
@click.option("--port", type=click.IntRange(1, 65535), help="Of our own broker.  [default: a free one]")
@click.option(
    "--fleet", default="edge-fleet", show_default=True, type=Identifier("the fleet name"), help="Its name."
)
@_PRESET
@_SET
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
    data: str, overrides: tuple[tuple[str, Any], ...], protocol: str | None, encoding: str | None,
    dim: int | None, out: Path, *, save_users: bool, overwrite: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a fleet over real MQTT: a broker, an aggregator process, and all devices in this process.

    At the end every update is accounted for and every device holds the newest version.

    \b
    Example:
      edge-fleet run --data synthetic --devices 50 --versions 40 --out runs/live
    """
    from edge.fleet.livecommand import LiveOptions, run_live

    live_options = LiveOptions(
        data=data,
        overrides=dict(overrides) | ({} if dim is None else {"dim": dim}),
        protocol=_protocol(protocol),
        encoding=encoding or "int8",
        **options,
    )
    with tempfile.TemporaryDirectory(prefix="edge-fleet-") as directory:
        work = run_live(
            live_options, out, Path(directory), overwrite=overwrite, save_users=save_users, say=say
        )
        outcome = asyncio.run(terminable(work))
    _show(outcome.scenario, outcome.summary, out, outcome.ledger, as_json=as_json)


@cli.command()
@_DATA
@click.option(
    "--algorithm",
    "algorithms",
    default="pfedrec",
    show_default=True,
    metavar="NAME[,NAME]",
    help="What is trained; names as for simulate.",
)
@_PRESET
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=V1,V2,...",
    type=Setting(),
    help="Values to try for an entry of the preset; may be given several times.",
)
@_PROTOCOL
@click.option("--seeds", default="0", show_default=True, metavar="0,1,2", help="Of all random draws.")
@click.option("--rounds", type=click.IntRange(1), help="Passes a device makes.  [default: the preset's]")
@click.option("--jobs", type=click.IntRange(1, 256), help="Runs at a time.  [default: all cores]")
@click.option("--show-test", is_flag=True, help="Test figures, too; look once, when the choice is made.")
@click.option("--out", required=True, type=PathName(file_okay=False), help="For the runs' folders.")
@_JSON
def sweep(
    data: str, algorithms: str, preset: str, settings: tuple[tuple[str, Any], ...], protocol: str | None,
    seeds: str, rounds: int | None, jobs: int | None, out: Path, *, show_test: bool, as_json: bool,
) -> int:  # fmt: skip
    """Simulate every combination of the listed values, and compare them by validation.

    Combinations are sorted by the mean, over the seeds, of the best round's validation figure. Test figures
    take no part in that, and are left out unless --show-test is given: settings that are chosen by them look
    better than they are. Called again with the same options, a sweep that was stopped goes on; finished runs
    are not made again. A combination that fails is named, and the others go on; the exit code is then that
    of the first failure.

    \b
    Example:
      edge-fleet sweep --data synthetic --set lr=0.05,0.1 --set negatives=4,8 --seeds 0,1 --out runs/sweep
    """
    from edge.fleet.sweepcommand import run_sweep
    from edge.fleet.sweepgrid import SweepOptions, seeds_of, values_of
    from edge.fleet.sweepresults import table_of

    listed = [(key, tuple(map(toml_value, map(str.strip, str(text).split(","))))) for key, text in settings]
    swept = run_sweep(
        SweepOptions(
            data=data,
            algorithms=tuple(name.strip() for name in algorithms.split(",")),
            preset=preset,
            protocol=_protocol(protocol),
            values=values_of(listed + ([] if rounds is None else [("rounds", (rounds,))])),
            seeds=seeds_of(seeds),
        ),
        out,
        jobs=jobs or len(os.sched_getaffinity(0)),
        show_test=show_test,
    )
    if as_json:
        echo_json(swept.content)
    else:
        click.echo("\n".join(table_of(swept.content)))
    for failure in swept.failures:
        say(f"edge-fleet: {failure.folder}: {failure.sentence}")
    return int(swept.failures[0].code) if swept.failures else 0


@cli.command(name="cold-start")
@_DATA
@_PRESET
@_SET
@_PROTOCOL
@click.option("--rounds", type=click.IntRange(1), help="Passes the fleet makes.  [default: the preset's]")
@click.option(
    "--passes", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Of a new device."
)
@_SEED
@click.option("--out", required=True, type=PathName(file_okay=False), help="For cold-start.json.")
@click.option("--overwrite", is_flag=True, help="Replace a cold-start.json that the folder holds.")
@_JSON
def cold_start(
    overrides: tuple[tuple[str, Any], ...], protocol: str | None, rounds: int | None, out: Path, *,
    overwrite: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Tell how well new users and new items are served.

    A fleet is trained without every fifth user. Each of these is then a new device with only its newest 1, 3,
    5 or 10 interactions (any, where there are no times), which makes local passes on the finished table and
    ranks its test item. A second table has the trained users' test items by how many interactions the fleet
    has of them.

    \b
    Example:
      edge-fleet cold-start --data synthetic --protocol clean --out runs/cold
    """
    from edge.fleet.coldstartcommand import ColdStartOptions, run_cold_start
    from edge.fleet.coldstarttext import text_of

    content = run_cold_start(
        ColdStartOptions(
            protocol=_protocol(protocol),
            overrides=dict(overrides) | ({} if rounds is None else {"rounds": rounds}),
            **options,
        ),
        out,
        overwrite=overwrite,
    )
    if as_json:
        echo_json(content)
    else:
        click.echo("\n".join(text_of(content)))


@cli.command()
@click.argument("name", type=click.Choice(TABLE_NAMES), metavar="NAME")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=PathName(file_okay=False))
@click.option("--data", help="For users: the ratings that the runs were made from, or: synthetic.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "latex"]),
    default="text",
    show_default=True,
    help="How the table is written.",
)
@_JSON
def table(name: str, folders: tuple[Path, ...], data: str | None, form: str, *, as_json: bool) -> None:
    """Print a table of the paper from the folders of runs.

    NAME is ml-100k or lastfm-2k (methods side by side, beside the published figures), ablation, views (own
    view against shared table), users (by activity, and by popularity of the test item; needs --data) or
    compare (two folders, user by user). A folder of runs' folders stands for these.

    \b
    Example:
      edge-fleet table ml-100k runs/published-0 runs/published-1 --format markdown
      edge-fleet table compare runs/clean-0 runs/ease-0
    """
    from edge.fleet.rendering import FORMATS
    from edge.fleet.tablecommand import run_table

    made = run_table(name, folders, data, say)
    if as_json:
        echo_json(made.content())
    else:
        click.echo("\n".join(FORMATS[form](made)))


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=PathName(file_okay=False))
@click.option("--out", required=True, type=PathName(dir_okay=False), help="The HTML file.")
@click.option(
    "--items",
    type=PathName(dir_okay=False),
    help="Names (and genres) of items: u.item, id<TAB>name.",
)
@click.option("--data", help="The ratings that the runs were made from: shows what users trained with.")
def report(folders: tuple[Path, ...], out: Path, items: Path | None, data: str | None) -> None:
    """Write one HTML page about runs: curves, traffic, time, and maps of the item embeddings.

    The page needs no network. Maps of users' own views need runs made with --save-users.

    \b
    Example:
      edge-fleet report runs/published-0 --items ml-100k/u.item --out report.html
    """
    from edge.fleet.report.reportcommand import run_report

    run_report(folders, out, items, data, say)
    echo_facts({"report": out, "size": f"{out.stat().st_size / 1e6:.1f} MB"})


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
        "an update reveals": "not tried"
        if "positives_recovered_f1" not in summary
        else f"its user's items with F1 {summary['positives_recovered_f1']:.2f}",
        "seconds a round": f"{summary['seconds_per_round']['median']:.3f}",
        "bytes an update": f"{summary['bytes_up_per_update']:.0f}",
        "peak memory": f"{summary['peak_rss_mb']:.0f} MB",
        "folder": str(out),
    }
    echo_facts(facts)
    if ledger:
        dropped = f" + {ledger['dropped']} dropped by rollbacks" if ledger["dropped"] else ""
        click.echo(
            "ledger: {made} updates made = {counted} counted + {stale} stale + {rejected} rejected{dropped}; "
            "all {devices} devices hold version {version}".format(**ledger | {"dropped": dropped})
        )


def _shown(figures: dict[str, float]) -> str:
    return f"HR@10 {figures['hr@10']:.4f}, NDCG@10 {figures['ndcg@10']:.4f}"


def main() -> None:
    """Run ``edge-fleet``."""
    run(cli, "edge-fleet")
