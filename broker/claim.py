"""A claim: one line that lets one device get one certificate, whoever brings it first.

``claim://HOST:PORT/DEVICE/CODE#AUTHORITY``: where to ask, for which id, with which secret, and the SHA-256 of
the fleet's authority, so that the device knows whom to tell the secret.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from broker.errors import InputError
from broker.protocol.topics import checked_id
from trainer.errors import ParameterError

SCHEME = "claim"
ENROLMENT_PORT = 8884
CODE_LETTERS = 26
"""Of 30 kinds each: 127 bits."""
_CODE = re.compile(rf"[a-z0-9]{{{CODE_LETTERS}}}")
_AUTHORITY = re.compile(r"[0-9a-f]{64}")


def is_code(text: str) -> bool:
    """Tell whether something has the form of a claim's code."""
    return _CODE.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim; printing it hides the code.

    Attributes
    ----------
    host, port : str, int
        Of the enrolment server.
    device : str
        The id that it is for.
    authority : str
        SHA-256 of the authority's certificate (DER), in hexadecimal digits.

    Raises
    ------
    InputError
        When a part is not as it must be.
    """

    host: str
    port: int
    device: str
    code: str = field(repr=False)
    authority: str

    def __post_init__(self) -> None:
        try:
            checked_id(self.device, "the device id")
        except ParameterError:
            raise InputError(_NONE) from None
        is_place = self.host and 0 < self.port < 65536
        if not (is_place and is_code(self.code) and _AUTHORITY.fullmatch(self.authority)):
            raise InputError(_NONE)

    @classmethod
    def parse(cls, text: str) -> "Claim":
        """Read a claim.

        Raises
        ------
        InputError
            When it is none; the sentence does not repeat it.
        """
        try:
            parts = urlsplit(text.strip())
            _, device, code = parts.path.split("/")
            if parts.scheme != SCHEME or parts.query or parts.username is not None:
                raise InputError(_NONE)
            return cls(
                host=parts.hostname or "",
                port=parts.port or 0,
                device=device,
                code=code,
                authority=parts.fragment,
            )
        except ValueError:
            raise InputError(_NONE) from None  # the cause has the code in it

    def text(self) -> str:
        """Give the line, with the code in it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}/{self.device}/{self.code}#{self.authority}"


_NONE = "that is no claim, or not all of it; it is one line: claim://HOST:PORT/DEVICE/CODE#AUTHORITY"
