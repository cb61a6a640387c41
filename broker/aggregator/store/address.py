"""Where the aggregator keeps what it must not forget, if not in a file of its directory."""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from trainer.errors import ParameterError

_SECRETS = frozenset({"password", "sslpassword"})


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A PostgreSQL address; printing it hides secrets.

    ``postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE[?OPTIONS]``

    Raises
    ------
    ParameterError
        When it is none.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/") or parts.fragment:
            raise ParameterError(
                "the store is no address of a database; write postgresql://USER@HOST/DATABASE, "
                "or leave it empty for a file in the directory"
            )

    @property
    def has_secret(self) -> bool:
        """Whether it holds a password."""
        return self.url != self.without_secrets

    @property
    def without_secrets(self) -> str:
        """The address for files and messages."""
        parts = urlsplit(self.url)
        user, _, host = parts.netloc.rpartition("@")
        name = user.partition(":")[0]
        query = parse_qsl(parts.query, keep_blank_values=True)
        shown = urlencode([(key, value) for key, value in query if key not in _SECRETS], safe="/")
        if len(query) == len([key for key, _ in query if key not in _SECRETS]):
            shown = parts.query
        where = f"{name}@{host}" if user else host
        return f"{parts.scheme}://{where}{parts.path}" + (f"?{shown}" if shown else "")

    def __str__(self) -> str:
        return self.without_secrets
