"""What an aggregator's systemd unit says that another's does not."""

from pathlib import Path

from broker.aggregator.config import AggregatorConfig
from broker.unit import Unit, interpreter


def aggregator_unit(directory: Path, config: AggregatorConfig, user: str | None) -> Unit:
    """Give the unit that runs the aggregator of a directory, and its own broker if it has one."""
    return Unit(
        program="edge-aggregator",
        module="broker.aggregator.cli",
        description=f"Aggregator of the fleet {config.fleet}",
        directory=directory.absolute(),
        user=user,
        python=interpreter(),
        # A broker of its own has a connection for each device.
        limits=("LimitNOFILE=65536",),
    )
