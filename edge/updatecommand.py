"""``edge-client update``: a signed release into the slot that is not in use (docs/updates.md)."""

import os
from pathlib import Path

import click

from broker.commandline import say
from broker.storage import is_in_use, open_file
from edge.datacommands import DIRECTORY


@click.command()
@DIRECTORY
@click.argument("bundle", required=False, type=click.Path(path_type=Path, dir_okay=False))
def update(directory: Path, bundle: Path | None) -> None:
    """Install a release from a bundle; works while `start` runs, which tries it at once.

    It is written beside what is in use. `start` keeps it when it works, and goes back when it does not:
    `edge-client status` tells. What is refused has a code of its own, 60 to 67.

    \b
    Example:
      edge-client update --dir me shop-2
    """
    from edge.config import load_config
    from edge.releases import install

    if bundle is None:
        raise click.UsageError("give the BUNDLE to install")
    config = load_config(directory, os.environ)
    with open_file(bundle) as stream:
        size = os.fstat(stream.fileno()).st_size
        manifest = install(directory, config, stream, size, lambda: is_in_use(directory))
    when = "start tries it now" if is_in_use(directory) else "the next start tries it"
    say(f"release {manifest.release} is installed; {when}")
