"""All of the user's data as one document; ``docs/device-data.md`` describes it."""

from base64 import b64encode
from dataclasses import asdict
from typing import Any

from edge import moment
from edge.config import DeviceConfig
from edge.personal import Personal
from edge.store import DeviceStore
from trainer.params import Floats

FORMAT = 1


def document(store: DeviceStore, config: DeviceConfig, now: float) -> dict[str, Any]:
    """Give everything that a device holds of its user, as JSON has it: one moment's state.

    Parameters
    ----------
    now : float
        Seconds since the epoch.

    Raises
    ------
    CorruptError
        When something cannot be read.
    """
    with store.consistent():
        head, remembered = store.model_head(), store.remembered()
        outbox = None if remembered.outbox_seq is None else store.outbox(remembered.outbox_seq)
        return {
            "format": "pfedrec-device",
            "format_version": FORMAT,
            "exported_at": moment.utc(now),
            "settings": _settings(config),
            "interactions": [
                {"item": item, "at": at, "time": moment.utc(at)} for item, at in store.interactions()
            ],
            "personal": _personal(store, store.personal()),
            "model": head and {"version": head.version, "sha256": head.sha256.hex(), "items": head.rows},
            "updates_made": remembered.last_seq,
            "outbox": outbox and {"seq": remembered.outbox_seq, "payload": b64encode(outbox).decode()},
            "receipts": store.receipts(),
            "withdrawn": store.withdrawn(),
        }


def _settings(config: DeviceConfig) -> dict[str, Any]:
    # An address as text has no password.
    home = "" if config.home_address is None else str(config.home_address)
    return asdict(config) | {"broker": str(config.address), "home_broker": home}


def _personal(store: DeviceStore, personal: Personal | None) -> dict[str, Any] | None:
    if personal is None:
        return None
    keys = dict(enumerate(store.catalogue()))
    return {
        "score_function": {"w": _floats(personal.score_function.w), "b": float(personal.score_function.b)},
        "own_view": [
            {"row": int(row), "item": keys.get(int(row)), "values": _floats(values)}
            for row, values in zip(personal.own_rows, personal.own_values, strict=True)
        ],
    }


def _floats(values: Floats) -> list[float]:
    return [float(value) for value in values]
