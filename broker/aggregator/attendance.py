"""Which devices are online, as their statuses and last wills tell."""

from broker.protocol.messages import Status


class Attendance:
    """The newest status of each device that is online."""

    def __init__(self) -> None:
        self._online: dict[str, tuple[int, int]] = {}  # incarnation and session

    def __len__(self) -> int:
        return len(self._online)

    def note(self, device: str, status: Status) -> None:
        """Take a device's status."""
        incarnation, session = self._online.get(device, (status.incarnation, 0))
        if status.incarnation == incarnation and status.session < session:
            return  # an old last will: brokers may notice late that a connection is dead
        if status.online:
            self._online[device] = status.incarnation, status.session
        else:
            self.leave_out(device)

    def leave_out(self, device: str) -> None:
        """Count a device as gone."""
        self._online.pop(device, None)
