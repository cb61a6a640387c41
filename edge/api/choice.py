"""What a caller wants recommended: options in the address, or all of them and a list of items in a body."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.interaction import read_item
from trainer.errors import ParameterError

MAX_TOP = 1_000
DEFAULT_TOP = 10
MAX_AMONG = 5_000
MAX_CHOICE_BYTES = 1_500_000
"""As many of the longest keys, with what stands between them."""
OPTIONS = frozenset({"top", "exclude_seen", "explain"})
"""What the address can say."""
_SWITCHES = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The options of `edge.recommendation.recommend`, checked."""

    top: int = DEFAULT_TOP
    exclude_seen: bool = True
    explain: bool = False
    among: Sequence[str] | None = None

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, str]) -> "Choice":
        """Read the options of an address; it has no others.

        Raises
        ------
        ParameterError
        """
        # What is none of theirs stays text, which is refused below.
        read = {"top": _number, "exclude_seen": _switch, "explain": _switch}
        return cls.of_document({name: read[name](text) for name, text in parameters.items()})

    @classmethod
    def of_document(cls, document: Any) -> "Choice":
        """Read a body.

        Raises
        ------
        ParameterError
        """
        if not isinstance(document, dict) or not document.keys() <= OPTIONS | {"among"}:
            raise ParameterError(
                'the body must be {"top": number, "exclude_seen": true or false, "explain": true or false, '
                '"among": [items]}, each of them optional'
            )
        top = document.get("top", DEFAULT_TOP)
        if type(top) is not int or not 1 <= top <= MAX_TOP:  # true is an int for Python
            raise ParameterError(f"top must be a whole number from 1 to {MAX_TOP}")
        for name in ("exclude_seen", "explain"):
            if not isinstance(document.get(name, False), bool):
                raise ParameterError(f"{name} must be true or false")
        return cls(
            top=top,
            exclude_seen=document.get("exclude_seen", True),
            explain=document.get("explain", False),
            among=_items(document["among"]) if "among" in document else None,
        )


def _items(value: Any) -> list[str]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_AMONG:
        raise ParameterError(f"among must be a list of 1 to {MAX_AMONG} items")
    return [read_item(each) for each in value]


def _number(text: str) -> Any:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else text


def _switch(text: str) -> Any:
    return _SWITCHES.get(text, text)
