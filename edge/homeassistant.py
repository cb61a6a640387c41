"""What home automation and the device say to each other by MQTT, without input or output.

The sensors are announced as Home Assistant's MQTT discovery has it: one retained message for each, at
``PREFIX/sensor/NODE/SENSOR/config``; an empty one takes it away. Their values are one retained JSON document.
Nothing that is published names an item.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from broker.protocol.topics import Filter, Topic, checked_id
from edge.interaction import Interaction, read_interaction
from edge.session import Activity
from trainer.errors import ParameterError

MAX_COMMAND_BYTES = 2_000
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}(/[A-Za-z0-9_-]{1,40}){0,3}")
_ORIGIN = "pfedrec-edge"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sensor:
    name: str
    template: str
    icon: str
    more: Mapping[str, Any]


_SENSORS: dict[str, _Sensor] = {
    "version": _Sensor(
        name="Table version", template="{{ value_json.version }}", icon="mdi:table-sync", more={}
    ),
    "interactions": _Sensor(
        name="Interactions",
        template="{{ value_json.interactions }}",
        icon="mdi:counter",
        more={"state_class": "measurement"},
    ),
    "online": _Sensor(
        name="Fleet connection",
        template="{{ 'online' if value_json.online else 'offline' }}",
        icon="mdi:lan-connect",
        more={"device_class": "enum", "options": ["online", "offline"]},
    ),
    "activity": _Sensor(
        name="Activity",
        template="{{ value_json.activity }}",
        icon="mdi:progress-clock",
        more={"device_class": "enum", "options": [*(each.value for each in Activity), "stopped"]},
    ),
    "last_training": _Sensor(
        name="Last training",
        template="{{ value_json.last_training }}",
        icon="mdi:school",
        more={"device_class": "timestamp"},
    ),
}


def checked_prefix(text: str) -> str:
    """Give `text` back if it can be a discovery prefix.

    Raises
    ------
    ParameterError
    """
    if not _PREFIX.fullmatch(text):
        raise ParameterError(
            f"home_prefix {text[:80]!r} is not allowed; use A-Z a-z 0-9 _ - in up to four levels"
        )
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class HomeTopics:
    """The topics of one device, and what is announced with them."""

    prefix: str
    fleet: str
    device: str

    def __post_init__(self) -> None:
        checked_prefix(self.prefix)
        checked_id(self.fleet, "the fleet name")
        checked_id(self.device, "the device id")

    @property
    def node(self) -> str:
        """The device's name among Home Assistant's nodes."""
        name = f"pfedrec_{self.fleet}_{self.device}"
        plain = name.replace(".", "_")
        # The underscores between the parts may be within them, too, and a full stop is not allowed.
        digest = blake2b(f"{self.fleet}/{self.device}".encode(), digest_size=4).hexdigest()
        return f"{plain}_{digest}"

    @property
    def _root(self) -> str:
        return f"pfedrec-home/{self.fleet}/{self.device}"

    @property
    def state(self) -> Topic:
        """Retained: the sensors' values."""
        return Topic(f"{self._root}/state")

    @property
    def availability(self) -> Topic:
        """Retained: online, or by the last will offline."""
        return Topic(f"{self._root}/availability")

    @property
    def record(self) -> Topic:
        """Commands come here."""
        return Topic(f"{self._root}/record")

    @property
    def removed(self) -> Topic:
        """The device tells itself here that all it sent before has arrived."""
        return Topic(f"{self._root}/removed")

    @property
    def record_filter(self) -> Filter:
        """Subscribes to the commands."""
        return Filter(self.record)

    @property
    def removed_filter(self) -> Filter:
        """Subscribes to the device's own mark."""
        return Filter(self.removed)

    def announcements(self, software: str) -> dict[Topic, bytes]:
        """Give the retained messages that announce the sensors, by topic."""
        device = {
            "identifiers": [self.node],
            "name": f"Recommender {self.device}",
            "manufacturer": _ORIGIN,
            "model": f"device of fleet {self.fleet}",
            "sw_version": software,
        }
        return {
            Topic(f"{self.prefix}/sensor/{self.node}/{key}/config"): _json(
                {
                    "name": sensor.name,
                    "unique_id": f"{self.node}_{key}",
                    "state_topic": self.state,
                    "value_template": sensor.template,
                    "availability_topic": self.availability,
                    "icon": sensor.icon,
                    "entity_category": "diagnostic",
                    "device": device,
                    "origin": {"name": _ORIGIN, "sw_version": software},
                    **sensor.more,
                }
            )
            for key, sensor in _SENSORS.items()
        }

    def retained(self) -> list[Topic]:
        """Give every topic that holds a retained message while the device is announced."""
        return [*self.announcements(""), self.state, self.availability]


def state_payload(facts: Mapping[str, Any]) -> bytes:
    """Give the sensors' values, of `edge.facts.device_facts`."""
    return _json({key: facts[key] for key in _SENSORS})


def read_command(payload: bytes, now: float) -> Interaction:
    """Read what came to the command topic: an item key as it is, or the JSON of `edge.interaction`.

    Raises
    ------
    ParameterError
        With a sentence that does not repeat what was sent.
    """
    if len(payload) > MAX_COMMAND_BYTES:
        raise ParameterError(f"a command has at most {MAX_COMMAND_BYTES} bytes")
    try:
        text = payload.decode().strip()
        value = json.loads(text) if text.startswith("{") else {"item": text}
    except (ValueError, RecursionError):
        raise ParameterError("a command is an item key in UTF-8, or a JSON object") from None
    return read_interaction(value, now)


def read_left_behind(told: object) -> dict[str, list[Topic]]:
    """Read which topics hold retained messages, by broker; what is damaged names none."""
    try:
        found = json.loads(told) if isinstance(told, str) else {}
    except (ValueError, RecursionError):
        return {}
    listed = found.items() if isinstance(found, dict) else ()
    return {
        place: [Topic(topic) for topic in topics]
        for place, topics in listed
        if isinstance(topics, list) and all(map(_is_topic, topics))
    }


def _is_topic(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable() and not set(value) & {"+", "#"}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
