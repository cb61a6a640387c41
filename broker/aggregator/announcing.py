"""Publishes what a fleet reads: the newest version's head, its table and catalogue, steps to it, a release.

Chunks first, the head that names them last. What is retained already on this connection is not sent again;
after a new one all is, as the broker may be a new one, or have lost what it held.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from broker.aggregator.core import AggregatorCore
from broker.aggregator.publication import Publication
from broker.aggregator.store.interface import AggregatorStore
from broker.aggregator.watching import Watch
from broker.connection import Connection
from broker.errors import PFedRecError
from broker.journal import Trouble
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Head, Plan, encode
from broker.protocol.topics import FleetTopics, Topic
from trainer.params import Floats

if TYPE_CHECKING:
    from broker.aggregator.offering import Offering


class Announcer:
    """Speaks for one core, by one connection.

    Parameters
    ----------
    make_plan : callable
        Gives the plan for a catalogue of so many items.
    store : AggregatorStore
        Numbers sessions, and has the score function that devices begin with.
    say : callable
        Told when the release on offer cannot be published.
    sign : callable
        Signs heads; None: they go unsigned.

    Attributes
    ----------
    session : int
        Of this aggregator, as heads have it; 0 before the first connection.
    offering : Offering or None
        The release on offer, for whoever serves a directory.
    """

    def __init__(
        self,
        core: AggregatorCore,
        connection: Connection,
        topics: FleetTopics,
        make_plan: Callable[[int], Plan],
        store: AggregatorStore,
        say: Callable[[str], None],
        watch: Watch,
        sign: Callable[[Head], Head] | None = None,
    ) -> None:
        self.session = 0
        self.offering: Offering | None = None
        self._connection = connection
        self._topics = topics
        self._make_plan = make_plan
        self._store = store
        self._say = say
        self._watch = watch
        self._sign = sign
        self._head_published = False
        self._catalogue_published = False
        self._steps_published = 0
        self.speak_for(core)

    def speak_for(self, core: AggregatorCore) -> None:
        """Take the core whose versions are published."""
        self._core = core
        self._plan = self._make_plan(len(core.table))
        self._publication = Publication(core.catalogue, self._plan, self._store.start())
        self._publication.begin(core.table)

    @property
    def plan(self) -> Plan:
        """What the head tells devices to do."""
        return self._plan

    @property
    def head_published(self) -> bool:
        """Whether a head was published on this connection."""
        return self._head_published and self._connection.connected

    def begin_session(self) -> None:
        """Take another session's number: devices send again what is not answered."""
        if self._sign is None:
            self.session = self._store.next_session()
        else:
            # Devices take no signed head of an earlier session than they have met; after a restore of a
            # backup the count alone would begin where others have been. And the clock alone may be behind
            # that of the machine that served before.
            self.session = self._store.next_session(max(self.session + 1, time.time_ns() // 1_000_000))

    def begin_anew(self) -> None:
        """Hold nothing for published: there is a new connection."""
        self._steps_published = 0
        self._catalogue_published = False
        if self.offering is not None:
            self.offering.begin()

    def lost(self) -> None:
        """Take that the connection is gone."""
        self._head_published = False

    def add_step(self, version: int, table: Floats) -> None:
        """Take the next version's table."""
        self._publication.add_step(version, table)

    def follow_catalogue(self, catalogue: Catalogue) -> None:
        """Take another catalogue, which the next head announces."""
        self._plan = self._make_plan(len(catalogue.keys))
        self._publication.change_catalogue(catalogue, self._plan)
        self._catalogue_published = False

    def publish(self) -> None:
        """Publish the newest version."""
        if self.session == 0:  # the first connection has no number yet; it publishes all of this anyway
            return
        self._publish_catalogue()
        head, chunks = self._publication.of(self._core, self.session)
        for chunk in chunks:
            self._send(self._topics.snapshot(head.slot, chunk.index), encode(chunk), "snapshot")
        for version, chunk in self._publication.step_chunks(self._steps_published):
            self._send(self._topics.delta(version, chunk.index), encode(chunk), "delta")
        self._steps_published = head.version
        self._publish_head(head)

    def offer_release(self) -> None:
        """Publish a few chunks of the release on offer, and name it once all are out."""
        offering = self.offering
        if offering is None or not self.head_published:
            return
        try:
            named = offering.named
            changed = offering.look(time.monotonic())
            for slot, chunk in offering.chunks():
                self._send(self._topics.release(slot, chunk.index), encode(chunk), "release")
        except PFedRecError as error:
            self._say(Trouble(f"the release is not offered: {error}"))
            return
        if changed or offering.named != named:
            head, _ = self._publication.of(self._core, self.session)
            self._publish_head(head)

    def _publish_catalogue(self) -> None:
        if self._catalogue_published:
            return
        for chunk in self._publication.catalogue_chunks():
            self._send(self._topics.catalogue(chunk.index), encode(chunk), "catalogue")
        self._catalogue_published = True

    def _publish_head(self, head: Head) -> None:
        if self.offering is not None:
            head = replace(head, offer=self.offering.named)
        self._send(self._topics.head, encode(head if self._sign is None else self._sign(head)), "head")
        self._head_published = True

    def _send(self, topic: Topic, payload: bytes, kind: str) -> None:
        self._connection.publish(topic, payload, retain=True)
        self._watch.sent(kind, len(payload))
