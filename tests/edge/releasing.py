"""Devices that take releases, and releases for them."""

import io
from pathlib import Path
from typing import Any

from broker.protocol.releases import Manifest
from broker.protocol.signatures import keys_to_text
from edge.config import DeviceConfig, initialise, load_config
from edge.guards import Limits
from edge.releases import install
from tests.bundles import FLEET, KEY, a_bundle

PROGRAM = b"#!/bin/sh\nexit %d\n"


def a_device(path: Path, **settings: Any) -> Path:
    """Make a device's directory that believes the key of `tests.bundles`; its broker is nowhere."""
    keys = path.with_name(f"{path.name}.pub")
    keys.write_text(keys_to_text((KEY,), "releases"))
    chosen: dict[str, Any] = {
        "device_id": "pi-1",
        "fleet": FLEET,
        "broker": "mqtt://127.0.0.1:1",
        "scorer": "numpy",
        "api_socket": False,
        "update_commands": True,
        "update_trial_s": 0.01,
        "training": Limits(max_load_per_core=0.0),
    }
    initialise(path, DeviceConfig(**chosen | settings), {"release_keys": keys})
    return path


def put(directory: Path, files: dict[str, bytes] | None = None, **changes: Any) -> Manifest:
    """Install a release in a device's directory."""
    whole = a_bundle(files, **changes)
    return install(directory, load_config(directory, {}), io.BytesIO(whole), len(whole))
