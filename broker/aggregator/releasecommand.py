"""``edge-aggregator release``: which devices are offered which signed release (docs/updates.md)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.aggregator.options import DIRECTORY, JSON
from broker.commandline import Identifier, PathName, echo_facts, echo_json, say

if TYPE_CHECKING:
    from broker.protocol.messages import Offer

_GROUPS = click.option(
    "--group",
    "groups",
    multiple=True,
    type=Identifier("the group"),
    help="All devices of it, whatever the share; may be repeated.",
)


@click.group()
def release() -> None:
    """Offer devices a signed release, to a share of them and to groups. Takes effect while `start` runs.

    \b
    Example:
      edge-aggregator release publish --dir shop shop-2 --keys release_key.pub --percent 10 --group beta
      edge-aggregator release widen --dir shop --percent 100
    """


@release.command()
@DIRECTORY
@click.argument("bundle", type=PathName(dir_okay=False))
@click.option(
    "--keys",
    type=PathName(dir_okay=False),
    help="release_key.pub; kept in DIR for the next time.",
)
@click.option("--percent", default=0, show_default=True, type=click.IntRange(0, 100), help="Of the devices.")
@_GROUPS
def publish(directory: Path, bundle: Path, keys: Path | None, percent: int, groups: tuple[str, ...]) -> None:
    """Check BUNDLE as a device does and offer it.

    \b
    Example:
      edge-aggregator release publish --dir shop shop-2 --keys release_key.pub --percent 10 --group beta
    """
    from broker.aggregator import offering
    from broker.aggregator.directory import load_config

    config = load_config(directory, os.environ)
    _tell(offering.publish(directory, config.fleet, bundle, keys, percent, groups))


@release.command()
@DIRECTORY
@click.option("--percent", type=click.IntRange(0, 100), help="Of the devices.  [default: as it is]")
@_GROUPS
def widen(directory: Path, percent: int | None, groups: tuple[str, ...]) -> None:
    """Offer the same release to others: a larger share, or besides to a group.

    \b
    Example:
      edge-aggregator release widen --dir shop --percent 50
    """
    from broker.aggregator import offering

    offer = offering.read_offer(directory)
    known = () if offer is None else offer.groups
    _tell(offering.change(directory, percent, tuple(dict.fromkeys((*known, *groups)))))


@release.command()
@DIRECTORY
def pause(directory: Path) -> None:
    """Offer it to nobody any more. Devices that have it keep it; a newer release replaces it.

    \b
    Example:
      edge-aggregator release pause --dir shop
    """
    from broker.aggregator import offering

    _tell(offering.change(directory, 0, ()))


@release.command()
@DIRECTORY
def withdraw(directory: Path) -> None:
    """Name no release in heads any more: devices older than releases refuse a head that names one.

    \b
    Example:
      edge-aggregator release withdraw --dir shop
    """
    from broker.aggregator import offering

    say(f"release {offering.withdraw(directory).release} is withdrawn; devices that have it keep it")


@release.command()
@DIRECTORY
@JSON
def show(directory: Path, *, as_json: bool) -> None:
    """Tell what is on offer, and to whom.

    \b
    Example:
      edge-aggregator release show --dir shop
    """
    from broker.aggregator.offering import read_offer

    offer = read_offer(directory)
    if offer is None:
        if as_json:
            echo_json({"release": None})
        else:
            say("no release is on offer")
        return
    facts = {
        "release": offer.release,
        "percent": offer.percent,
        "groups": list(offer.groups),
        "bytes": offer.size,
        "sha256": offer.sha256.hex(),
    }
    if as_json:
        echo_json(facts)
    else:
        echo_facts(facts | {"groups": ", ".join(offer.groups) or "none"})


def _tell(offer: "Offer") -> None:
    whom = [f"{offer.percent} % of the devices"] * bool(offer.percent)
    whom += [f"group {name}" for name in offer.groups]
    say(f"release {offer.release} is offered to {', '.join(whom) or 'nobody'}")
