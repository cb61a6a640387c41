"""What a device tells about itself: to ``edge-client status``, by the local API, to home automation.

It reads the store and the configuration; it does not know who asks, and nothing in it names an item.
"""

import time
from typing import Any

from edge import moment
from edge.bulletin import IN_USE, read_bulletin
from edge.config import DeviceConfig
from edge.putaside import damaged_files
from edge.scorer import available_scorer_name
from edge.slots import Slots
from edge.store import DeviceStore


def device_facts(config: DeviceConfig, store: DeviceStore, *, running: bool) -> dict[str, Any]:
    """Give the facts by name, fit for JSON.

    Parameters
    ----------
    running : bool
        Whether ``edge-client start`` runs in the directory.
    """
    stored, interacted, remembered = store.model_head(), store.interacted(), store.remembered()
    # What is in memory only is nobody's once `start` has ended.
    in_memory = running and remembered.held is not None and remembered.held.version == store.fact(IN_USE)
    head = remembered.held if in_memory and stored is not None else stored
    trained_at = store.fact("trained_at")
    release = Slots(store.path.parent).state()
    return {
        "device_id": config.device_id,
        "fleet": config.fleet,
        "broker": str(config.address),
        "running": running,
        **read_bulletin(store, time.monotonic(), running=running),
        "version": None if head is None else head.version,
        "sha256": None if head is None else head.sha256.hex(),
        "stored_version": None if stored is None else stored.version,
        "items": None if head is None else head.rows,
        "interactions": interacted.total,
        "known_items": int(interacted.rows.size),
        "unknown_items": interacted.unknown,
        "last_training": None if trained_at is None else moment.utc(trained_at),
        "updates_made": remembered.last_seq,
        "outbox": store.outbox_size(),
        "receipts": store.receipts(),
        "withdrawn": store.withdrawn(),
        "damaged_files": [path.name for path in damaged_files(store.path)],
        "scorer": available_scorer_name() if config.scorer == "auto" else config.scorer,
        "release": release.release or None,
        "release_on_trial": release.on_trial,
        "release_failed": f"release {release.failed}: {release.reason}" if release.failed else None,
    }
