"""What one device is given: a directory with its certificate, its key, and whom to believe.

``edge-client init --bundle DIR`` takes it; the names here are the contract with it (`edge.config`).
"""

from pathlib import Path

from broker.authority.authority import Authority
from broker.authority.certificates import Issued
from broker.storage import make_directory, read_file, write_atomically

CA_NAME, CERT_NAME, KEY_NAME, HEAD_KEY_NAME, DEVICE_NAME = (
    "ca.pem",
    "cert.pem",
    "key.pem",
    "head_key.pub",
    "device.toml",
)


MODES = {KEY_NAME: 0o600}
"""Of files that are not for everybody; the others' is 0644."""


class Bundles:
    """Makes the bundles of an authority's devices.

    Parameters
    ----------
    broker : str
        Address of the broker as the devices reach it.
    settings : str
        More entries of a device's configuration (TOML).

    Raises
    ------
    FileUnreadableError
    """

    def __init__(self, authority: Authority, broker: str, settings: str = "") -> None:
        self._common = {
            CA_NAME: read_file(authority.path / "ca.pem"),
            HEAD_KEY_NAME: read_file(authority.path / "head_key.pub"),
        }
        self._rest = f'fleet = "{authority.fleet}"\nbroker = "{broker}"\n{settings}'

    def files(self, device: str, issued: Issued) -> dict[str, bytes]:
        """Give a bundle's files by name; the one that marks it as whole is the last."""
        own = {KEY_NAME: issued.key, CERT_NAME: issued.certificate}
        return own | self._common | {DEVICE_NAME: f'device_id = "{device}"\n{self._rest}'.encode()}


def write_bundle(path: Path, authority: Authority, device: str, broker: str, issued: Issued) -> None:
    """Write a device's bundle, the key readable by its owner alone; `broker` is as for `Bundles`.

    Raises
    ------
    NotWritableError, DiskFullError, FileUnreadableError
    """
    make_directory(path)
    path.chmod(0o700)
    for name, content in Bundles(authority, broker).files(device, issued).items():
        write_atomically(path / name, content, mode=MODES.get(name, 0o644))
