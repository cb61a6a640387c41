"""Whether a device takes a release, and how it gets into the spare slot.

Everything that can be refused is refused before anything on the device is touched: a bundle is read once to
be checked and once more to be written.
"""

import platform
import re
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, BinaryIO

from broker.errors import BundleOlderError, BundleUnfitError, BundleUntrustedError, ConfigError
from broker.protocol.releases import (
    SETTINGS,
    Manifest,
    SignedManifest,
    file_blocks,
    read_bundle,
    require_fleet,
    signer_of,
)
from edge.config import DeviceConfig, checked_settings, read_release_keys, require_settings_fit
from edge.slots import Slots, require_no_trial_in_use
from edge.slotstate import SlotState

_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def admit(signed: SignedManifest, config: DeviceConfig, state: SlotState) -> None:
    """Refuse what this device does not take.

    Raises
    ------
    ConfigError
        When the device has no keys of releases.
    BundleUntrustedError, BundleForeignError, BundleOlderError, BundleUnfitError
    """
    manifest, keys = signed.manifest, read_release_keys(config)
    require_keys(keys)
    place = signer_of(signed, keys)
    names = [key.hex() for key in keys]
    # A file of other keys is the owner's decision; what was met with old ones says nothing about it.
    if state.key in names and place < names.index(state.key):
        raise BundleUntrustedError("the bundle is signed with a key that a later one has followed here")
    require_fleet(manifest, config.fleet)
    _require_newer(manifest, state)
    _require_fit(manifest, config)


def require_keys(keys: tuple[bytes, ...]) -> None:
    """Refuse to take any release without keys to believe.

    Raises
    ------
    ConfigError
    """
    if not keys:
        raise ConfigError(
            "this device takes no releases: it has no release key; set release_keys in config.toml to the "
            "release_key.pub that firmware-tools bundle key has made"
        )


def _require_newer(manifest: Manifest, state: SlotState) -> None:
    release = manifest.release
    if release == state.highest == state.active_release:
        raise BundleOlderError(f"release {release} is here already, and works")
    if release < state.highest:
        raise BundleOlderError(f"release {release} is older than {state.highest}, which has worked here")


def _require_fit(manifest: Manifest, config: DeviceConfig) -> None:
    ours = package_version("pfedrec-edge")
    if _numbers(ours) < _numbers(manifest.runtime):
        raise BundleUnfitError(
            f"release {manifest.release} needs pfedrec-edge {manifest.runtime}, and this is {ours}; install "
            "that first"
        )
    machine = platform.machine()
    if manifest.machines and machine not in manifest.machines:
        raise BundleUnfitError(
            f"release {manifest.release} is for {', '.join(manifest.machines)}, and this is {machine}"
        )
    if manifest.health and not config.update_commands:
        raise BundleUnfitError(
            f"release {manifest.release} brings a program that start is to run, {manifest.health}; set "
            "update_commands = true in config.toml to allow it"
        )


def _numbers(version: str) -> tuple[int, ...]:
    found = _NUMBERS.match(version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def install(
    directory: Path,
    config: DeviceConfig,
    stream: BinaryIO,
    size: int,
    is_running: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Write a release to the spare slot, to be tried by the next start; a running one begins with it at once.

    Parameters
    ----------
    stream : BinaryIO
        The bundle, at its beginning; it must be seekable.
    size : int
        Its size in bytes.
    is_running : callable
        Tells whether ``start`` runs in the directory.

    Raises
    ------
    BundleError
        When it is refused; nothing was touched.
    ConfigError
        When the device has no keys of releases.
    InUseError
        When another update is under way, or the spare slot's release is being tried.
    DiskFullError, NotWritableError
        The spare slot is empty then; what is in use is not touched.
    """
    slots = Slots(directory)
    signed = read_bundle(stream, size, int(config.update_max_mb * 1e6))
    admit(signed, config, slots.state())
    require_settings_fit(directory, _settings_in(stream, signed.manifest))

    def emptied(state: SlotState) -> SlotState:
        admit(signed, config, state)
        require_no_trial_in_use(state, running=is_running())
        return state.emptied()

    with slots.writing():
        state = slots.change(emptied)
        stream.seek(len(signed.head))
        slots.write(state.spare, signed, stream)
        slots.change(lambda state: state.filled(signed.manifest.release))
    return signed.manifest


def _settings_in(stream: BinaryIO, manifest: Manifest) -> dict[str, Any]:
    """Read and check all files; give the settings that the release changes."""
    settings: dict[str, Any] = {}
    for file in manifest.files:
        if file.path == SETTINGS:  # at most some kilobytes, as the manifest's reader has made sure
            settings = checked_settings(b"".join(file_blocks(stream, file)))
        else:
            for _ in file_blocks(stream, file):
                pass
    return settings
