"""``edge-client update``: a signed release into the slot that is not in use (docs/updates.md)."""

import os
from pathlib import Path

import click

from broker.commandline import PathName, say
from broker.storage import is_in_use, open_file
from edge.datacommands import DIRECTORY


@click.command()
@DIRECTORY
@click.argument("bundle", required=False, type=PathName(dir_okay=False))
def update(directory: Path, bundle: Path | None) -> None:
    """Install a release from BUNDLE, or without one what the fleet offers; works while `start` runs.

    It is written beside what is in use. `start` keeps it when it works, and goes back when it does not:
    `edge-client status` tells. What is refused has a code of its own, 60 to 67. What the fleet offers comes
    by itself when it is this device's turn; asked for, it comes at once, though it may have failed before.

    \b
    Example:
      edge-client update --dir me shop-2
    """
    from edge.config import load_config, read_release_keys
    from edge.releases import install, require_keys
    from edge.slots import Slots
    from edge.slotstate import SlotState

    config = load_config(directory, os.environ)
    if bundle is None:
        require_keys(read_release_keys(config))
        Slots(directory).change(SlotState.wished)
        who = "start" if is_in_use(directory) else "the next start"
        say(f"{who} takes what the fleet offers, if it is newer")
        return
    with open_file(bundle) as stream:
        size = os.fstat(stream.fileno()).st_size
        manifest = install(directory, config, stream, size, lambda: is_in_use(directory))
    when = "start tries it now" if is_in_use(directory) else "the next start tries it"
    say(f"release {manifest.release} is installed; {when}")
