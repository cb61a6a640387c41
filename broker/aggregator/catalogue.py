"""Reading item keys: one a line, or the first column of a CSV, tab, ``::`` or ``|`` separated file."""

import csv

from trainer.datasets import checked_key, decoded_lines
from trainer.errors import DataFormatError

_SEPARATORS = ("|", "\t", "::", ",")
_HEADERS = {"item", "item_id", "itemid", "item_key", "key", "id", "movieid", "movie_id", "artistid", "asin"}


def parse_item_keys(content: bytes, source: str) -> tuple[str, ...]:
    """Read item keys in file order.

    A separator counts when every line has it; otherwise the whole line is the key.

    Parameters
    ----------
    content : bytes
        UTF-8, or Latin-1 where it is not valid UTF-8.
    source : str
        What error messages call the file.

    Raises
    ------
    DataFormatError
        With the line number, when the file is empty, binary, or has a key that is empty, too long, not
        printable or repeated.
    """
    lines = [(number, line) for number, line in enumerate(decoded_lines(content, source), 1) if line.strip()]
    separator = next((s for s in _SEPARATORS if all(s in line for _, line in lines)), None)
    if len(lines) > 1 and _first_field(lines[0][1], separator).lower() in _HEADERS:
        lines = lines[1:]
    line_of: dict[str, int] = {}
    for number, line in lines:
        key = checked_key(_first_field(line, separator), "item key", source, number)
        if key in line_of:
            raise DataFormatError(
                source, number, f"the item key {key!r} stands in line {line_of[key]} already"
            )
        line_of[key] = number
    return tuple(line_of)


def _first_field(line: str, separator: str | None) -> str:
    if separator == "," and '"' in line:
        return next(csv.reader([line]))[0].strip()
    return (line.split(separator, 1)[0] if separator else line).strip()
