"""MQTT topics: built and parsed here and nowhere else.

``pfedrec/1/FLEET/...``, at most seven levels; a device's id is a level of its own, so that a broker's
``%c`` and ``%u`` access rules apply. A `Topic` is published to; a `Filter` is subscribed to.
"""

import re
from dataclasses import dataclass
from typing import NewType

from broker.errors import SchemaError
from trainer.errors import ParameterError

Topic = NewType("Topic", str)
Filter = NewType("Filter", str)

PROTOCOL_VERSION = 1
ROOT = f"pfedrec/{PROTOCOL_VERSION}"

DELTA_SLOTS = 16
"""Twice as many as steps are on offer, so that who reads one is not disturbed by the next few."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,4}")


def checked_id(text: str, what: str) -> str:
    """Give `text` back if it can name a fleet or a device.

    Raises
    ------
    ParameterError
        When it cannot; MQTT's ``/ + #`` are excluded, and so is what file names or URLs dislike.
    """
    if not _ID.fullmatch(text):
        raise ParameterError(
            f"{what} {text[:80]!r} is not allowed; use 1 to 64 of A-Z a-z 0-9 . _ - "
            "beginning with a letter or digit"
        )
    return text


@dataclass(frozen=True, slots=True)
class FleetTopics:
    """The topics of one fleet.

    Raises
    ------
    ParameterError
        When the fleet's name, or a device id given to a method, is not allowed.
    """

    fleet: str

    def __post_init__(self) -> None:
        checked_id(self.fleet, "the fleet name")

    @property
    def head(self) -> Topic:
        """Retained: the newest published version."""
        return Topic(f"{ROOT}/{self.fleet}/head")

    def snapshot(self, slot: int, chunk: int) -> Topic:
        """Retained: one chunk of the table in a slot."""
        return Topic(f"{ROOT}/{self.fleet}/snapshot/{slot}/{chunk}")

    def snapshot_filter(self, slot: int) -> Filter:
        """All chunks of a slot."""
        return Filter(f"{ROOT}/{self.fleet}/snapshot/{slot}/+")

    def delta(self, version: int, chunk: int) -> Topic:
        """Retained: one chunk of the step to `version`; the newest few are there, in slots taken in turn."""
        return Topic(f"{ROOT}/{self.fleet}/delta/{version % DELTA_SLOTS}/{chunk}")

    def delta_filter(self, version: int) -> Filter:
        """All chunks of the step to `version`."""
        return Filter(f"{ROOT}/{self.fleet}/delta/{version % DELTA_SLOTS}/+")

    def catalogue(self, chunk: int) -> Topic:
        """Retained: one chunk of the item keys."""
        return Topic(f"{ROOT}/{self.fleet}/catalogue/{chunk}")

    @property
    def catalogue_filter(self) -> Filter:
        """All chunks of the catalogue."""
        return Filter(f"{ROOT}/{self.fleet}/catalogue/+")

    def release(self, slot: int, chunk: int) -> Topic:
        """Retained: one chunk of the bundle of the release on offer, in one of two slots."""
        return Topic(f"{ROOT}/{self.fleet}/release/{slot}/{chunk}")

    def status(self, device: str) -> Topic:
        """Retained: a device is online or, by its last will, offline."""
        return Topic(f"{ROOT}/{self.fleet}/device/{checked_id(device, 'the device id')}/status")

    def update(self, device: str) -> Topic:
        """A device's updates."""
        return Topic(f"{ROOT}/{self.fleet}/device/{checked_id(device, 'the device id')}/update")

    @property
    def everything(self) -> Filter:
        """All topics of the fleet."""
        return Filter(f"{ROOT}/{self.fleet}/#")

    def trial(self, token: str, name: str) -> Topic:
        """What nobody but `broker.aggregator.trial` uses."""
        return Topic(f"{ROOT}/{self.fleet}/trial/{token}/{name}")

    def receipt(self, device: str) -> Topic:
        """Answers to a device's updates."""
        return Topic(f"{ROOT}/{self.fleet}/device/{checked_id(device, 'the device id')}/receipt")

    def quality(self, device: str) -> Topic:
        """What a device has found a version's quality to be."""
        return Topic(f"{ROOT}/{self.fleet}/device/{checked_id(device, 'the device id')}/quality")

    def part(self, device: str) -> Topic:
        """Parts of a device's update that came to one worker of several, for the one that leads."""
        return Topic(f"{ROOT}/{self.fleet}/device/{checked_id(device, 'the device id')}/part")

    def presence(self, worker: str) -> Topic:
        """Retained: an aggregator is there or, by its last will, gone."""
        return Topic(f"{ROOT}/{self.fleet}/aggregator/{checked_id(worker, 'the name of a worker')}/status")

    @property
    def presence_filter(self) -> Filter:
        """The presence of all aggregators: one, or several workers."""
        return Filter(f"{ROOT}/{self.fleet}/aggregator/+/status")

    @property
    def call(self) -> Topic:
        """Whoever serves the fleet shows its presence again."""
        return Topic(f"{ROOT}/{self.fleet}/aggregator/call")

    @property
    def part_filter(self) -> Filter:
        """The parts of all devices' updates."""
        return Filter(f"{ROOT}/{self.fleet}/device/+/part")

    @property
    def shared_update_filter(self) -> Filter:
        """The updates of all devices, each for one of the fleet's workers (a shared subscription)."""
        return Filter(f"$share/pfedrec-{self.fleet}/{self.update_filter}")

    @property
    def quality_filter(self) -> Filter:
        """The quality reports of all devices."""
        return Filter(f"{ROOT}/{self.fleet}/device/+/quality")

    @property
    def status_filter(self) -> Filter:
        """The status of all devices."""
        return Filter(f"{ROOT}/{self.fleet}/device/+/status")

    @property
    def update_filter(self) -> Filter:
        """The updates of all devices."""
        return Filter(f"{ROOT}/{self.fleet}/device/+/update")

    def parse(self, topic: str) -> "Address":
        """Tell what a received message's topic means.

        Raises
        ------
        SchemaError
            When it is no topic of this fleet.
        """
        prefix = f"{ROOT}/{self.fleet}/"
        levels = topic[len(prefix) :].split("/") if topic.startswith(prefix) else []
        match levels:
            case ["device", device, ("status" | "update" | "receipt" | "quality" | "part") as kind] if (
                _ID.fullmatch(device)
            ):
                return Address(kind, device=device)
            case ["head"]:
                return Address("head")
            case ["snapshot", slot, chunk] if _INDEX.fullmatch(slot) and _INDEX.fullmatch(chunk):
                return Address("snapshot", slot=int(slot), chunk=int(chunk))
            case ["delta", slot, chunk] if _INDEX.fullmatch(slot) and _INDEX.fullmatch(chunk):
                return Address("delta", slot=int(slot), chunk=int(chunk))
            case ["release", slot, chunk] if _INDEX.fullmatch(slot) and _INDEX.fullmatch(chunk):
                return Address("release", slot=int(slot), chunk=int(chunk))
            case ["catalogue", chunk] if _INDEX.fullmatch(chunk):
                return Address("catalogue", chunk=int(chunk))
            case ["aggregator", "call"]:
                return Address("call")
            case ["aggregator", worker, "status"] if _ID.fullmatch(worker):
                return Address("presence", worker=worker)
            case _:
                raise SchemaError(f"the topic {ascii(topic)[:120]} is not one of fleet {self.fleet}")


@dataclass(frozen=True, slots=True)
class Address:
    """What a topic means: its kind (the level that names it: head, snapshot, ... receipt) and its parts."""

    kind: str
    device: str = ""
    worker: str = ""
    slot: int = 0
    chunk: int = 0
