"""``edge-aggregator fsck``, ``backup``, ``restore``, ``rollback``, ``export`` and ``import``."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.aggregator.options import DIRECTORY, JSON
from broker.commandline import PathName, confirm, echo_json, say
from broker.errors import CorruptError, NothingYetError
from broker.storage import exclusive, write_atomically

if TYPE_CHECKING:
    from broker.aggregator.store.sql import SqlStore

_YES = click.option("--yes", is_flag=True, help="Do not ask.")
_FILE = click.argument("file", type=PathName(dir_okay=False, readable=False))


@contextmanager
def _opened(directory: Path, *, alone: bool = False) -> Iterator["SqlStore"]:
    """Open a directory's store, of this release; `alone` while nobody serves it.

    `start` is who brings an earlier release's to date, and says so: a mistyped command must not bar the way
    back.
    """
    from broker.aggregator.directory import load_config, open_store, serving

    config = load_config(directory, os.environ)
    if not alone:
        with closing(open_store(directory, config, looking=True)) as store:
            yield store
        return
    with exclusive(directory), closing(open_store(directory, config, looking=True)) as store, serving(store):
        yield store


@click.command()
@DIRECTORY
@JSON
def fsck(directory: Path, *, as_json: bool) -> None:
    """Make every version anew from the journal, and compare hashes; works while `start` runs.

    Versions in the window (keep_versions) are proved; of older ones only the figures are left.

    \b
    Example:
      edge-aggregator fsck --dir shop
    """
    from broker.aggregator.examination import examine

    with _opened(directory) as store:
        found = list(examine(store))
    wrong = [each for each in found if each.judgement == "wrong"]
    counts = Counter(each.judgement for each in found)
    if as_json:
        echo_json({"versions": dict(counts), "wrong": [asdict(each) for each in wrong]})
    else:
        for each in wrong:
            say(f"version {each.version}: {each.why}")
        say(
            f"{counts['proved']} versions proved, {counts['kept']} have their hash but cannot be made anew, "
            f"{counts['forgotten']} have left the window, {counts['wrong']} are wrong"
        )
    if wrong:
        raise CorruptError(
            f"{len(wrong)} of {len(found)} versions are not what the journal says; "
            "restore a backup, or return to a version that was proved with edge-aggregator rollback"
        )


@click.command()
@DIRECTORY
@_FILE
def backup(directory: Path, file: Path) -> None:
    """Write all that the store holds to FILE, as it is at one moment; works while `start` runs.

    FILE is a SQLite database whatever the store is; an earlier FILE is replaced. config.toml and keys are not
    in it.

    \b
    Example:
      edge-aggregator backup --dir shop shop-monday.sqlite3
    """
    from broker.aggregator.keeping import back_up

    with _opened(directory) as store:
        version = back_up(store, file)
    say(f"{file} holds the fleet with version {version}")


@click.command()
@DIRECTORY
@_FILE
@_YES
@click.option(
    "--another-fleet", is_flag=True, help="Also over a store that another fleet than the backup's has used."
)
def restore(directory: Path, file: Path, *, yes: bool, another_fleet: bool) -> None:
    """Replace all that the store holds by a backup; `start` must not run.

    What was accepted since the backup is lost. The restored table becomes a new version above all that
    devices may know: they take it, and updates that they made from lost versions are rejected.

    \b
    Example:
      edge-aggregator restore --dir shop shop-monday.sqlite3
    """
    from broker.aggregator import keeping
    from broker.aggregator.directory import load_config

    config = load_config(directory, os.environ)
    confirm(f"Replace what the store of {directory} holds by {file}?", yes=yes)
    with exclusive(directory):
        old, new = keeping.restore(directory, config, file, time.time(), another_fleet=another_fleet)
    say(f"version {old} of {file} is version {new} now; run it with: edge-aggregator start --dir {directory}")


@click.command()
@DIRECTORY
@click.argument("version", type=click.IntRange(0))
def rollback(directory: Path, version: int) -> None:
    """Return to the table of VERSION, as a new version; `start` must not run.

    Updates that wait are dropped, and those that come later from a version in between are rejected. `start`
    publishes it.

    \b
    Example:
      edge-aggregator rollback --dir shop 117
    """
    from broker.aggregator.keeping import roll_back

    with _opened(directory, alone=True) as store:
        made = roll_back(store, version, time.time())
    say(f"version {made} has the table of version {version}; it is published at the next start")


@click.command(name="export")
@DIRECTORY
@click.option("--table", type=PathName(dir_okay=False), help="Write model.npz here.")
@click.option("--version", type=click.IntRange(0), help="Of the table.  [default: the newest]")
@click.option("--rounds", type=PathName(dir_okay=False), help="Write JSON lines here.")
def export(directory: Path, table: Path | None, version: int | None, rounds: Path | None) -> None:
    """Write a table with its item keys, as in a run's folder, and the rounds' figures.

    Works while `start` runs.

    \b
    Example:
      edge-aggregator export --dir shop --table model.npz --rounds rounds.jsonl
    """
    from broker.aggregator.keeping import table_file
    from broker.aggregator.overwriting import is_rounds_file, is_table_file, require_replaceable

    if table is None and rounds is None:
        raise click.UsageError("give --table FILE, --rounds FILE or both")
    if table is not None:
        table = require_replaceable(table, is_table_file, "no model.npz")
    if rounds is not None:
        rounds = require_replaceable(rounds, is_rounds_file, "no file of rounds")
    with _opened(directory) as store:
        if table is not None:
            state = store.load()
            wanted = state.version if version is None else version
            kept = store.kept_table(wanted)
            if kept is None:
                raise NothingYetError(
                    f"version {wanted} has no table in {directory}; the newest is {state.version}"
                )
            write_atomically(table, table_file(kept.table, state.catalogue))
            say(f"{table} holds version {wanted}: {len(kept.table)} items")
        if rounds is not None:
            records = store.rounds(1_000_000)
            lines = [asdict(each) | {"sha256": each.sha256.hex()} for each in reversed(records)]
            write_atomically(rounds, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
            say(f"{rounds} holds {len(lines)} rounds")


@click.command(name="import")
@DIRECTORY
@_FILE
def import_(directory: Path, file: Path) -> None:
    """Take the rows of a model.npz into a new version, matched by item key; `start` must not run.

    \b
    Example:
      edge-aggregator import --dir shop model.npz
    """
    from broker.aggregator.keeping import import_table

    with _opened(directory, alone=True) as store:
        done = import_table(store, file, time.time())
    more = f"; {done.unknown} items of {file} are not in the catalogue" if done.unknown else ""
    say(f"version {done.version} has {done.rows} rows of {file}{more}; it is published at the next start")


COMMANDS = (fsck, backup, restore, rollback, export, import_)
