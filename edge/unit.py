"""What a device's systemd unit says that another's does not."""

from pathlib import Path

from broker.unit import Unit, interpreter
from edge.config import DeviceConfig


def device_unit(directory: Path, config: DeviceConfig, user: str | None) -> Unit:
    """Give the unit that runs the device of a directory; its user's other programs go first."""
    return Unit(
        program="edge-client",
        module="edge.cli",
        description=f"Recommender of the device {config.device_id} in the fleet {config.fleet}",
        directory=directory.absolute(),
        user=user,
        python=interpreter(),
        limits=("Nice=10", "OOMScoreAdjust=300"),
    )
