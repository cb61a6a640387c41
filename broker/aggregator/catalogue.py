"""Reading item keys: one a line, or the first column of a CSV, tab, ``::`` or ``|`` separated file."""

import csv

from trainer.datasets import checked_key, decoded_lines
from trainer.errors import DataFormatError

_SEPARATORS = ("\t", "::", "|", ",")
_HEADERS = {"item", "item_id", "itemid", "item_key", "key", "id", "movieid", "movie_id", "artistid", "asin"}


def parse_item_keys(content: bytes, source: str) -> tuple[str, ...]:
    """Read item keys in file order.

    A separator counts when every line has it, of several the one that comes first in the first line;
    without one the whole line is the key.

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
    separator = _separator([line for _, line in lines])
    keys = [(number, _first_field(line, separator, source, number)) for number, line in lines]
    if len(keys) > 1 and keys[0][1].lower() in _HEADERS:
        keys = keys[1:]
    line_of: dict[str, int] = {}
    for number, text in keys:
        key = checked_key(text, "item key", source, number)
        if key in line_of:
            raise DataFormatError(
                source, number, f"the item key {key!r} stands in line {line_of[key]} already"
            )
        line_of[key] = number
    return tuple(line_of)


def _separator(lines: list[str]) -> str | None:
    in_all = [separator for separator in _SEPARATORS if all(separator in line for line in lines)]
    if "\t" in in_all:  # which no key holds
        return "\t"
    # Later columns may hold the others: genres in bars, titles with commas.
    return min(in_all, key=lines[0].index, default=None)


def _first_field(line: str, separator: str | None, source: str, number: int) -> str:
    if separator == "," and '"' in line:
        try:
            return next(csv.reader([line], strict=True))[0].strip()
        except csv.Error as error:
            raise DataFormatError(source, number, str(error)) from error
    return (line.split(separator, 1)[0] if separator else line).strip()
