"""JSON from a program that is not trusted, read within bounds.

Bytes are cheap and objects are not: ten megabytes of ``{},`` would be a quarter of a gigabyte of
dictionaries. So the separators are counted before anything is read.
"""

import json
from typing import Any, NoReturn

from trainer.errors import ParameterError

MAX_VALUES = 250_000
"""Some 18 MB of Python objects at worst; a thousand listens with all that players send have a tenth of it."""


def read_json(body: bytes) -> Any:
    """Read a document.

    Raises
    ------
    ParameterError
        When it is no JSON in UTF-8, or has too many values, or is nested too deeply.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise ParameterError(f"the JSON document has more than {MAX_VALUES} values")
    try:
        return json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        # The position, but not the text around it: it may be what somebody listens to.
        where = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ParameterError(f"Cannot parse JSON document: it is not well formed{where}.") from None


def _no_number(_name: str) -> NoReturn:
    raise ValueError("no number of JSON")
