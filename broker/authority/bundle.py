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


def write_bundle(path: Path, authority: Authority, device: str, broker: str, issued: Issued) -> None:
    """Write a device's bundle, the key readable by its owner alone.

    Parameters
    ----------
    broker : str
        Address of the broker as the device reaches it.

    Raises
    ------
    NotWritableError, DiskFullError
    """
    make_directory(path)
    path.chmod(0o700)
    write_atomically(path / KEY_NAME, issued.key, mode=0o600)
    write_atomically(path / CERT_NAME, issued.certificate)
    write_atomically(path / CA_NAME, read_file(authority.path / "ca.pem"))
    write_atomically(path / HEAD_KEY_NAME, read_file(authority.path / "head_key.pub"))
    text = f'device_id = "{device}"\nfleet = "{authority.fleet}"\nbroker = "{broker}"\n'
    write_atomically(path / DEVICE_NAME, text.encode())
