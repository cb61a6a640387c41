"""What the log says of versions: what closed them, and what the guard has found of them."""

import logging

from broker.aggregator.decisions import ClosedRound
from broker.aggregator.guard import VersionQuality
from broker.aggregator.watching import Watch

_LOG = logging.getLogger(__name__)


class Chronicle:
    """Tells of what is stored, once each.

    Parameters
    ----------
    watch : Watch
        Told the guard's findings, too.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._told = (0, "")

    def round_closed(self, closed: ClosedRound) -> None:
        """Tell of a version that a round, the guard or a change of the catalogue has made."""
        _LOG.info(
            "version %d: %d updates%s, staleness %.1f",
            closed.version,
            closed.updates,
            " by deadline" if closed.by_deadline else "",
            closed.staleness_sum / max(1, closed.updates),
            extra={
                "event": "round closed",
                "version": closed.version,
                "updates": closed.updates,
                "by": closed.closed_by,
                "bytes_up": closed.bytes_up,
            },
        )
        if closed.restored == closed.version - 1:
            _LOG.error(
                "version %d: what the round came to is not finite; its %d updates are dropped",
                closed.version,
                closed.dropped,
            )
        elif closed.restored is not None:
            _LOG.warning(
                "version %d has the table of version %d again; %d accepted updates are dropped",
                closed.version,
                closed.restored,
                closed.dropped,
            )
        if closed.catalogue_step is not None:
            _LOG.info("version %d: %s", closed.version, closed.catalogue_step.summary)

    def found(self, quality: VersionQuality) -> None:
        """Tell what a version is found to be, when that is news."""
        told = (quality.version, quality.finding)
        if quality.finding == "trial" or told == self._told:
            return
        self._told = told
        self._watch.judged(quality)
        level = logging.ERROR if quality.finding == "bad" else logging.INFO
        _LOG.log(
            level,
            "version %d is %s: %s",
            quality.version,
            quality.finding,
            quality.summary,
            extra={"event": "version judged", "version": quality.version, "finding": quality.finding},
        )
