"""Where an MQTT broker is: ``mqtt://[USER[:PASSWORD]@]HOST[:PORT]``, or ``mqtts://`` for TLS."""

import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote, urlsplit

from broker.tls import TlsFiles
from trainer.errors import ParameterError

DEFAULT_PORT = 1883
DEFAULT_TLS_PORT = 8883


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerAddress:
    """A broker's address; printing it hides the password.

    Attributes
    ----------
    secure : bool
        Whether TLS is spoken.
    tls : TlsFiles
        What with; not part of what is written.
    """

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    secure: bool = False
    tls: TlsFiles = field(default=TlsFiles())

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
            secure = parts.scheme == "mqtts"
            default = DEFAULT_TLS_PORT if secure else DEFAULT_PORT
            port = default if parts.port is None else parts.port
        except ValueError:
            parts, port, secure = urlsplit(""), 0, False
        excess = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or excess or not port:
            raise ParameterError(
                f"{_without_password(text)!r} is no broker address; write mqtt://HOST:PORT, "
                "for example mqtt://192.168.1.10:1883, or mqtts://HOST:PORT with TLS"
            )
        return cls(
            host=parts.hostname,
            port=port,
            username=unquote(parts.username) if parts.username is not None else None,
            password=unquote(parts.password) if parts.password is not None else None,
            secure=secure,
        )

    def context(self) -> ssl.SSLContext | None:
        """Give what to connect with; None without TLS.

        Raises
        ------
        ConfigError
            When the files cannot be used.
        """
        return self.tls.context() if self.secure else None

    def with_tls(self, files: TlsFiles) -> "BrokerAddress":
        """Give the same address with the files to speak TLS with.

        Raises
        ------
        ParameterError
            When it is not ``mqtts``.
        """
        if not self.secure:
            raise ParameterError(f"{self} is without TLS; certificates go with mqtts://{self.host}:PORT")
        return replace(self, tls=files)

    def __str__(self) -> str:
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' * self.secure}://{user}{host}:{self.port}"


def _without_password(text: str) -> str:
    head, at, tail = text.rpartition("@")
    return f"…@{tail[:200]}" if at and head else text[:200]
