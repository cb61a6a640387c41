"""Other aggregators that publish heads of the same fleet: theirs and ours would take turns."""

from collections.abc import Callable

from broker.aggregator.watching import Watch
from broker.protocol.messages import Head
from broker.protocol.topics import FleetTopics

_MOST = 8
"""Instances of others that are told of; who makes up more is not worth the memory."""


class Rivals:
    """Tells of each of the first few, once.

    Parameters
    ----------
    say : callable
        Told one sentence.
    watch : Watch
        Told of every head.
    """

    def __init__(self, topics: FleetTopics, say: Callable[[str], None], watch: Watch) -> None:
        self._topics = topics
        self._say = say
        self._watch = watch
        self._instances: set[int] = set()

    def published(self, head: Head) -> None:
        """Take a head that is not ours."""
        self._watch.foreign_head()
        if head.instance in self._instances or len(self._instances) >= _MOST:
            return
        self._instances.add(head.instance)
        self._say(
            f"another aggregator has published version {head.version} of fleet {self._topics.fleet}; if it "
            "still runs, stop one of the two, or give one another fleet name"
        )
