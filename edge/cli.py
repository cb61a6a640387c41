"""``edge-client``: one device of a fleet."""

import os

# Before numpy is loaded: a thread pool costs a small board memory and gains nothing here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import secrets
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.commandline import Identifier, PathName, echo_facts, echo_json, report, run, say
from broker.errors import UnknownItemError
from broker.servicecommand import install_service
from broker.storage import is_in_use, read_file
from edge import moment
from edge.datacommands import DIRECTORY as _DIRECTORY
from edge.datacommands import JSON as _JSON
from edge.datacommands import export, forget, reset
from edge.gateway.command import gateway
from edge.updatecommand import update

if TYPE_CHECKING:
    from broker.unit import Unit


_FAR_AHEAD_S = 86_400.0
"""A zone's difference is no mistake."""
_FILE = PathName(dir_okay=False, readable=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfedrec-edge")
def cli() -> None:
    """Give this device's user a recommender of their own. Interactions never leave the device.

    \b
    Example:
      edge-client init --dir me --device-id kitchen-pi --fleet shop --broker mqtt://192.168.1.10:1883
      edge-client start --dir me
      edge-client record --dir me item-17 item-4
      edge-client recommend --dir me
    """


@cli.command()
@_DIRECTORY
@click.option("--device-id", type=Identifier("the device id"), help="Unique in the fleet.")
@click.option("--fleet", type=Identifier("the fleet name"), help="As the aggregator has it.")
@click.option("--broker", help="mqtt://[USER[:PASSWORD]@]HOST:PORT, or mqtts://HOST:PORT with TLS")
@click.option("--scorer", help="auto, tflite or numpy.  [default: auto]")
@click.option(
    "--bundle",
    type=PathName(file_okay=False, readable=False),
    help="What `edge-aggregator device add` or `firmware-tools provision` has made: all of the below.",
)
@click.option("--ca", "tls_ca", type=_FILE, help="With mqtts: who signs the broker's certificate.")
@click.option("--cert", "tls_cert", type=_FILE, help="With mqtts: this device's certificate.")
@click.option("--key", "tls_key", type=_FILE, help="With mqtts: its secret key.")
@click.option("--head-key", "head_keys", type=_FILE, help="Public keys of what the aggregator publishes.")
@click.option("--release-key", "release_keys", type=_FILE, help="Public keys of releases (docs/updates.md).")
def init(directory: Path, bundle: Path | None, **settings: Any) -> None:
    """Set up a device's directory. Certificates and keys are copied into it.

    \b
    Example:
      edge-client init --dir me --device-id kitchen-pi --fleet shop --broker mqtt://192.168.1.10:1883
      edge-client init --dir me --bundle kitchen-pi
    """
    from edge.config import CONFIG_NAME, FILES, DeviceConfig, initialise, read_bundle

    given = {name: value for name, value in settings.items() if value is not None}
    own_files = {name: given.pop(name) for name in FILES if name in given}
    if bundle is not None:
        bundled, files = read_bundle(bundle)
        config, files = replace(bundled, **given), files | own_files
    else:
        missing = [name for name in ("device_id", "fleet", "broker") if name not in given]
        if missing:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise click.UsageError(f"give {options}, or --bundle")
        config, files = DeviceConfig(**given), own_files
    initialise(directory, config, files)
    say(f"{directory} is set up for device {config.device_id} of fleet {config.fleet}")
    say(f"settings: {directory / CONFIG_NAME}; run it with: edge-client start --dir {directory}")


@cli.command()
@_DIRECTORY
@click.option("--claim", "claim_file", type=_FILE, help="A file with the claim.  [default: it is asked for]")
def enrol(directory: Path, claim_file: Path | None) -> None:
    """Set up a device's directory with a claim, one line of `firmware-tools provision claims`.

    The device makes its own key, which never leaves it, and asks the fleet's enrolment server for a
    certificate. A call that is cut off may be given again. The claim is read from a file, from a terminal or
    from a pipe: what is in an argument everybody on the machine can see.

    \b
    Example:
      edge-client enrol --dir me --claim claim.txt
    """
    from broker.claim import Claim
    from edge.config import CONFIG_NAME
    from edge.enrolment import enrol

    if claim_file is not None:
        text = read_file(claim_file).decode("utf-8", "replace")
    elif sys.stdin is None:
        raise click.UsageError("there is nobody to ask; give --claim FILE")
    elif sys.stdin.isatty():
        text = click.prompt("claim", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    config = enrol(directory, Claim.parse(text))
    say(f"{directory} is set up for device {config.device_id} of fleet {config.fleet}")
    say(f"settings: {directory / CONFIG_NAME}; run it with: edge-client start --dir {directory}")


@cli.command()
@_DIRECTORY
@click.option(
    "--bundle",
    required=True,
    type=PathName(file_okay=False, readable=False),
    help="A new one for this device, of `device add` or `firmware-tools provision devices --renew`.",
)
def renew(directory: Path, bundle: Path) -> None:
    """Take a bundle's certificate and key instead of those that are here; the rest stays as it is.

    All of its files take their places or none, whatever happens meanwhile. `start` uses them when it is
    started again.

    \b
    Example:
      edge-client renew --dir me --bundle kitchen-pi
    """
    from edge.renewal import renew

    config = renew(directory, bundle, os.environ)
    say(f"{config.device_id} has new certificates; start it again to use them, then delete {bundle}")


@cli.command()
@_DIRECTORY
@click.option("--broker", help="mqtt://HOST:PORT  [default: as configured]")
@click.option("--seed", type=click.IntRange(0), help="Of all random draws.  [default: drawn]")
@click.option("--verbose", is_flag=True, help="Log more.")
def start(directory: Path, broker: str | None, seed: int | None, *, verbose: bool) -> None:
    """Train, and take part in the fleet's rounds, until SIGTERM or Ctrl-C.

    A broker that is away is waited for. Interactions recorded or forgotten meanwhile are noticed within a
    second. A database that is damaged is put aside, and a new one made from what can be read.
    A release that `edge-client update` has installed is tried, and kept or given back (docs/updates.md).
    SIGHUP: read config.toml again. Beside it the local API is served, and home automation is told the status,
    as config.toml says.

    \b
    Example:
      edge-client start --dir me
    """
    import numpy as np

    from broker.journal import set_up_logging
    from broker.servicing import Service
    from broker.supervisor import Supervisor
    from edge.config import DeviceConfig, load_config
    from edge.renewal import finish
    from edge.serving import serve

    def load() -> DeviceConfig:
        return load_config(directory, os.environ, broker=broker)

    set_up_logging(verbose=verbose)
    finish(directory, os.environ)
    service = Service(Supervisor(), load, say)
    service.listen()
    rng = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
    serve(directory, load, service, say, rng)
    say("stopped")


@cli.command()
@_DIRECTORY
@click.argument("items", nargs=-1)
@click.option("--at", help="When: seconds since 1970 or ISO 8601.  [default: now]")
@click.option("--file", "file", type=PathName(readable=False), help="Lines of ITEM or ITEM,TIME.")
def record(directory: Path, items: tuple[str, ...], at: str | None, file: Path | None) -> None:
    """Record what the user interacted with; works while `start` runs, and offline.

    All of a call is recorded, or none. Before the first table has arrived any item is taken, and used
    once the catalogue has it.

    \b
    Example:
      edge-client record --dir me item-17 item-4
      edge-client record --dir me --file events.csv
    """
    from edge.config import open_store
    from edge.events import parse_events, parse_time

    if bool(items) == (file is not None):
        raise click.UsageError("give either ITEMs or --file FILE")
    if file is not None and at is not None:
        raise click.UsageError("--at goes with ITEMs; in a file each line has its own time")
    now = time.time()
    if file is not None:
        events = parse_events(read_file(file), str(file), now)
    else:
        when = now if at is None else parse_time(at)
        events = [(_checked_item(item), when) for item in items]
    store = open_store(directory)
    try:
        known = store.has_catalogue()
        unknown = store.unknown_items([item for item, _ in events]) if known else []
        if unknown:
            raise UnknownItemError(
                f"{_listed(unknown)} not in the catalogue of {directory}; nothing was recorded"
            )
        store.record(events)
    finally:
        store.close()
    say(f"recorded {len(events)} interaction{'s' * (len(events) != 1)}")
    ahead = max((when for _, when in events), default=now)
    if ahead > now + _FAR_AHEAD_S:
        say(
            f"the time {moment.local(ahead)} lies ahead of this machine's clock; if it is wrong, take it "
            f"back with: edge-client forget --dir {directory} --from {moment.utc(ahead)[:10]}"
        )
    if not known:
        say("the catalogue has not arrived yet; items that it does not have will wait until it has them")


def _checked_item(item: str) -> str:
    from trainer.datasets import checked_key

    return checked_key(item, "item", "ITEM", None)


def _listed(items: list[str]) -> str:
    shown = ", ".join(repr(item[:60]) for item in items[:3])
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{shown}{rest} {'is' if len(items) == 1 else 'are'}"


@cli.command()
@_DIRECTORY
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="How many items.")
@click.option(
    "--exclude-seen/--include-seen",
    default=True,
    show_default=True,
    help="Whether to leave out what the user has interacted with.",
)
@click.option(
    "--filter",
    "among",
    type=PathName(readable=False),
    help="Choose among the items of this file only, one a line.",
)
@click.option("--explain", is_flag=True, help="Name the user's own items that speak for each.")
@_JSON
def recommend(
    directory: Path, top: int, among: Path | None, *, exclude_seen: bool, explain: bool, as_json: bool
) -> None:
    """List the best items that the user has not interacted with.

    Before anything was recorded the order is the fleet's: about by popularity.

    \b
    Example:
      edge-client recommend --dir me --top 5
      edge-client recommend --dir me --filter in-stock.txt --explain
    """
    from dataclasses import asdict

    from edge.api.client import recommend_by_start
    from edge.bulletin import read_bulletin
    from edge.config import load_config, open_store
    from edge.recommendation import recommend as best_items
    from edge.scorer import make_scorer
    from edge.slots import Slots

    config = load_config(directory, os.environ)
    choice = None if among is None else _lines(among)
    with closing(open_store(directory)) as store:
        unknown = [] if choice is None else store.unknown_items(choice)
        result = None
        if store.holds_newer():
            result = recommend_by_start(
                directory, top, exclude_seen=exclude_seen, among=choice, explain=explain
            )
            if result is None and is_in_use(directory):
                say("start, which holds a newer table, does not answer; this is from the stored one")
        result = result or best_items(
            store,
            make_scorer(config.scorer_choice, Slots(directory).model),
            top,
            exclude_seen=exclude_seen,
            among=choice,
            explain=explain,
        )
        reason = read_bulletin(store, time.monotonic(), running=is_in_use(directory))["reason"]
    if as_json:
        echo_json(asdict(result))
        return
    if unknown and choice:
        say(f"{len(unknown)} of {len(choice)} items to choose among are not in the catalogue")
    if not result.personal:
        say(f"no training yet ({reason}): the order is the fleet's, the same for every new user")
    if not result.items:
        say("nothing is left to recommend: the user has interacted with all of it (see --include-seen)")
    for each in result.items:
        because = f"  because of {', '.join(each.because)}" if each.because else ""
        click.echo(f"{each.rank:>4}  {each.score:.4f}  {each.item}{because}")


def _lines(file: Path) -> list[str]:
    from trainer.datasets import decoded_lines

    return [line.strip() for line in decoded_lines(read_file(file), str(file)) if line.strip()]


@cli.command()
@_DIRECTORY
@_JSON
def status(directory: Path, *, as_json: bool) -> None:
    """Tell what the device holds and does, and why it is or is not training.

    \b
    Example:
      edge-client status --dir me --json
    """
    from edge.config import load_config, open_store
    from edge.facts import device_facts

    config = load_config(directory, os.environ)
    store = open_store(directory)
    try:
        facts = device_facts(config, store, running=is_in_use(directory))
    finally:
        store.close()
    if as_json:
        echo_json(facts)
        return
    receipts = ", ".join(f"{count} {verdict}" for verdict, count in facts["receipts"].items()) or "none yet"
    shown = {name: "-" if value is None else value for name, value in facts.items()}
    listed = {name: ", ".join(facts[name]) or "none" for name in ("unknown_facts", "damaged_files")}
    echo_facts(shown | {"receipts": receipts} | listed)


@cli.command()
@_DIRECTORY
@_JSON
def doctor(directory: Path, *, as_json: bool) -> None:
    """Look for what keeps the device from working well, and say what to do about it.

    Ends with 0 when nothing must be done, and with 50 when something must.

    \b
    Example:
      edge-client doctor --dir me
    """
    from edge.doctor import examine
    from edge.surroundings import Surroundings

    report(examine(directory, os.environ, Surroundings(), time.time()), as_json=as_json)


def _unit_of(directory: Path, user: str | None) -> "Unit":
    from edge.config import load_config
    from edge.unit import device_unit

    return device_unit(directory, load_config(directory, os.environ), user)


cli.add_command(
    install_service(
        "edge-client",
        "pfedrec-edge",
        _unit_of,
        """
    Example:
      edge-client install-service --dir me --user pi
      edge-client install-service --dir /var/lib/pfedrec-edge
    """,
    )
)
for _command in (export, forget, gateway, reset, update):
    cli.add_command(_command)


def main() -> None:
    """Run ``edge-client``."""
    run(cli, "edge-client")


if __name__ == "__main__":  # the unit's way: python -m finds the package without a path to a script
    main()
