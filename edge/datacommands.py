"""``edge-client export``, ``forget`` and ``reset``: the user's own data in the user's own hands."""

import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.commandline import PathName, echo_json, say
from broker.storage import exclusive, write_atomically

if TYPE_CHECKING:
    from edge.erasure import Erased

DIRECTORY = click.option(
    "--dir",
    "directory",
    required=True,
    type=PathName(file_okay=False, readable=False),
    help="The device's directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_YES = click.option("--yes", is_flag=True, help="Do not ask.")


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError("there is nobody to ask; add --yes to do it without a question")
    click.confirm(question, abort=True, err=True)


@click.command()
@DIRECTORY
@click.option("--out", type=PathName(), help="Write a file instead of printing.")
def export(directory: Path, out: Path | None) -> None:
    """Give all of the user's data as one JSON document; works while `start` runs.

    Interactions, the personal model, what waits for the fleet, what the fleet answered, and the settings
    without secrets. docs/device-data.md describes it.

    \b
    Example:
      edge-client export --dir me --out my-data.json
    """
    import json

    from edge.config import load_config, open_store
    from edge.export import document

    config = load_config(directory, os.environ)
    with closing(open_store(directory)) as store:
        content = document(store, config, time.time())
    if out is None:
        echo_json(content)
        return
    # For the user's eyes only, as the database is.
    write_atomically(out, f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode(), mode=0o600)
    say(f"{out} holds {len(content['interactions'])} interactions and everything that was learnt from them")


@click.command()
@DIRECTORY
@click.argument("items", nargs=-1)
@click.option("--from", "since", help="Only from this time on: seconds since 1970 or ISO 8601.")
@click.option("--to", "until", help="Only before this time.")
@click.option("--everything", is_flag=True, help="All interactions, and damaged files that were put aside.")
@_YES
@JSON
def forget(
    directory: Path,
    items: tuple[str, ...],
    since: str | None,
    until: str | None,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Forget interactions, and all that this device has learnt with them; works while `start` runs.

    With the interactions go the personal model, which is made anew from what is left, and an update that
    waits for the fleet. No byte of them stays in the database. What the fleet has received before stays
    part of the shared table.

    \b
    Example:
      edge-client forget --dir me item-17
      edge-client forget --dir me --from 2026-05-01 --to 2026-05-08
      edge-client forget --dir me --everything --yes
    """
    from dataclasses import asdict

    from edge.config import DATABASE_NAME, load_config, open_store
    from edge.erasure import Selection
    from edge.events import parse_time
    from edge.putaside import damaged_files

    narrowed = bool(items) or since is not None or until is not None
    if everything == narrowed:
        raise click.UsageError("give ITEMs, --from, --to or several of them; or --everything alone")
    selection = Selection(
        items=items or None,
        since=None if since is None else parse_time(since),
        until=None if until is None else parse_time(until),
    )
    load_config(directory, os.environ)
    if everything:
        _confirm(f"forget all interactions in {directory}?", yes=yes)
    with closing(open_store(directory)) as store:
        erased = store.forget(selection)
        # Also where there was nothing to forget: an earlier call may have been cut off here.
        store.scrub()
    aside = damaged_files(directory / DATABASE_NAME)
    if everything:
        _remove(aside)
        aside = []
    if as_json:
        echo_json(asdict(erased) | {"damaged_files": [path.name for path in aside]})
        return
    _tell(erased)
    if erased.interactions and aside:
        say(f"files that were put aside may hold it, too; remove them yourself: {_listed(aside)}")


@click.command()
@DIRECTORY
@click.option("--keep-interactions", is_flag=True, help="Begin anew, but with what the user interacted with.")
@_YES
def reset(directory: Path, *, keep_interactions: bool, yes: bool) -> None:
    """Make a fresh device of it: no interactions, no model, nothing for the fleet. Not while `start` runs.

    The settings stay. Damaged files that were put aside go, too, unless interactions are kept.

    \b
    Example:
      edge-client reset --dir me --keep-interactions --yes
    """
    import secrets

    from edge.config import DATABASE_NAME, load_config
    from edge.putaside import damaged_files
    from edge.rebuild import open_sound_store

    load_config(directory, os.environ)
    what = "the model" if keep_interactions else "everything but the settings"
    with exclusive(directory):
        _confirm(f"remove {what} in {directory}?", yes=yes)
        with closing(open_sound_store(directory, say)) as store:
            erased = store.reset(secrets.randbits(53), keep_interactions=keep_interactions)
            store.scrub()
        aside = damaged_files(directory / DATABASE_NAME)
        if not keep_interactions:
            _remove(aside)
            aside = []
    _tell(erased)
    if aside:
        say(f"files that were put aside are still there: {_listed(aside)}")


def _tell(erased: "Erased") -> None:
    plural = "s" * (erased.interactions != 1)
    say(f"forgot {erased.interactions} interaction{plural}; {erased.left} left")
    if erased.personal:
        say("the personal model is gone; the next training makes it anew from what is left")
    if erased.withdrawn is not None:
        say(
            f"update {erased.withdrawn} was taken back"
            + (
                "; it was sent before, so the aggregator may have received it and then counts it"
                if erased.may_have_left
                else " before it was ever sent"
            )
        )
    if erased.received:
        say("what the fleet received before stays part of the shared table")


def _remove(paths: list[Path]) -> None:
    from broker.storage import named_failures

    for path in paths:
        with named_failures(path):
            path.unlink()
        say(f"removed {path.name}")


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
