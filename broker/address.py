"""Where an MQTT broker is: ``mqtt://[USER[:PASSWORD]@]HOST[:PORT]``."""

from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from trainer.errors import ParameterError

DEFAULT_PORT = 1883


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerAddress:
    """A broker's address; printing it hides the password."""

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> "BrokerAddress":
        """Read an address.

        Raises
        ------
        ParameterError
            When it is none.
        """
        try:
            parts = urlsplit(text)
            port = DEFAULT_PORT if parts.port is None else parts.port
        except ValueError:
            parts, port = urlsplit(""), 0
        excess = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme != "mqtt" or not parts.hostname or excess or not port:
            raise ParameterError(
                f"{_without_password(text)!r} is no broker address; write mqtt://HOST:PORT, "
                "for example mqtt://192.168.1.10:1883"
            )
        return cls(
            host=parts.hostname,
            port=port,
            username=unquote(parts.username) if parts.username is not None else None,
            password=unquote(parts.password) if parts.password is not None else None,
        )

    def __str__(self) -> str:
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt://{user}{host}:{self.port}"


def _without_password(text: str) -> str:
    head, at, tail = text.rpartition("@")
    return f"…@{tail[:200]}" if at and head else text[:200]
