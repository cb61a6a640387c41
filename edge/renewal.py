"""New certificates for a device that has some: all of a bundle's files take their places, or none.

Certificate and key are two files and must fit. So the new ones are written beside the old into ``renewal``,
which is whole once it bears that name; then they are moved over one by one. Who finds such a folder finishes
it: after a power failure in between, the next ``start`` does.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from broker.errors import InputError
from broker.storage import make_directory, named_failures, read_file, sync_directory, write_atomically
from broker.tls import certificate_facts
from edge.config import (
    FILES,
    OPTIONAL_FILES,
    DeviceConfig,
    load_config,
    read_bundle,
    read_head_keys,
    with_files,
)

_READY, _BEGUN = "renewal", ".renewal"


def renew(path: Path, bundle: Path, environment: Mapping[str, str]) -> DeviceConfig:
    """Take a bundle's certificate, key, authority and head keys; give the device's configuration.

    Other settings stay as they are. Unless the bundle is for this device, nothing is changed.

    Raises
    ------
    InputError
        When it is another device's, or this one has no certificates.
    NotInitialisedError, ConfigError, FileUnreadableError, NotWritableError, DiskFullError
    """
    finish(path, environment)
    config = load_config(path, environment)
    given, files = read_bundle(bundle)
    if (given.device_id, given.fleet) != (config.device_id, config.fleet):
        raise InputError(
            f"{bundle} is for device {given.device_id} of fleet {given.fleet}; this is {config.device_id} of "
            f"{config.fleet}"
        )
    if missing := [name for name in FILES if name not in OPTIONAL_FILES and not getattr(config, name)]:
        raise InputError(
            f"{path} has no {missing[0]}; a device without certificates is set up anew with init"
        )
    there = with_files(given, files)
    _ = (there.address.context(), read_head_keys(there))
    if (name := certificate_facts(files["tls_cert"]).common_name) != config.device_id:
        raise InputError(f"{files['tls_cert']} is the certificate of {name}; this is {config.device_id}")
    contents = {FILES[name]: read_file(file) for name, file in files.items() if getattr(config, name)}
    begun = path / _BEGUN
    with named_failures(begun):
        shutil.rmtree(begun, ignore_errors=True)
        make_directory(begun)
        begun.chmod(0o700)
        for name, content in contents.items():
            write_atomically(begun / name, content, mode=0o600)
        begun.rename(path / _READY)
    sync_directory(path)
    finish(path, environment)
    return config


def finish(path: Path, environment: Mapping[str, str]) -> bool:
    """Move new files over that an earlier call could not; tell whether there were any.

    Raises
    ------
    NotWritableError, DiskFullError, ConfigError
    """
    ready = path / _READY
    if not ready.is_dir():
        return False
    config = load_config(path, environment)
    for name, file in FILES.items():
        if (ready / file).exists():
            mode = 0o600 if name == "tls_key" else 0o644
            write_atomically(Path(getattr(config, name)), read_file(ready / file), mode=mode)
    with named_failures(ready):
        shutil.rmtree(ready)
    return True
