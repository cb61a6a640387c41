"""``edge-aggregator items``: add to a fleet's catalogue, retire and rename, while it runs or not."""

import os
import time
from pathlib import Path

import click

from broker.aggregator.options import DIRECTORY
from broker.commandline import PathName, say
from broker.errors import TimedOutError
from broker.storage import read_file
from trainer.errors import ParameterError

_WAIT_S = 30.0
_POLL_S = 0.05
_FILE = click.argument("file", type=PathName(readable=False))


@click.group()
def items() -> None:
    """Change the catalogue of a fleet: rows are only ever added, and keep their places.

    Each file is one new version of the table, made by the aggregator that runs, within a second or, where a
    version is on trial, once that has ended (guard_wait_s at most), or when it starts. A file with a mistake
    changes nothing.

    \b
    Example:
      edge-aggregator items add --dir shop new-items.txt
    """


@items.command()
@DIRECTORY
@_FILE
def add(directory: Path, file: Path) -> None:
    """Add the items of FILE: a key a line, or the first column.

    A further column like:KEY names an item of the catalogue that the new one is like; several may. The new
    row starts at the mean of theirs, without one at the mean of all. A retired item comes back as it was.

    \b
    Example:
      edge-aggregator items add --dir shop new-items.tsv
    """
    _change("add", directory, file)


@items.command()
@DIRECTORY
@_FILE
def retire(directory: Path, file: Path) -> None:
    """Retire the items of FILE, a key a line: they are not recommended any more.

    \b
    Example:
      edge-aggregator items retire --dir shop sold-out.txt
    """
    _change("retire", directory, file)


@items.command()
@DIRECTORY
@_FILE
def rename(directory: Path, file: Path) -> None:
    """Rename the items of FILE: a key and its new one a line, in two columns.

    Devices go on to know the item by its former keys as well.

    \b
    Example:
      edge-aggregator items rename --dir shop renamed.tsv
    """
    _change("rename", directory, file)


def _change(kind: str, directory: Path, file: Path) -> None:
    from broker.aggregator.catalogue_changes import KINDS, parse_change
    from broker.aggregator.directory import is_served, load_config, open_store

    config = load_config(directory, os.environ)
    name = os.fsencode(file).decode(errors="backslashreplace")  # a file's name is bytes
    change = parse_change(next(each for each in KINDS if each == kind), read_file(file), name)
    store = open_store(directory, config, looking=True)
    try:
        number = store.queue_change(change, time.time())
        outcome = store.change_outcome(number)
        deadline = time.monotonic() + _WAIT_S
        while outcome is None and is_served(directory, store):
            if time.monotonic() > deadline:
                raise TimedOutError(
                    f"the aggregator of {directory} has not made the change within {_WAIT_S:.0f} s, perhaps "
                    f"as a version is on trial (for {config.guard_wait_s:g} s at most: guard_wait_s); it is "
                    "queued, and will be made"
                )
            time.sleep(_POLL_S)
            outcome = store.change_outcome(number)
    finally:
        store.close()
    if isinstance(outcome, str):
        raise ParameterError(f"the catalogue has changed meanwhile, and nothing was made: {outcome}")
    count = f"{len(change.items)} items to {kind}"
    if outcome is None:
        say(f"{count}: queued; it is made when the aggregator starts")
    else:
        say(f"{count}: made with version {outcome}")
