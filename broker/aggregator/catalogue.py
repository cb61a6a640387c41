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
    keys = [(number, columns[0]) for number, columns in split_lines(content, source)]
    line_of: dict[str, int] = {}
    for number, text in keys:
        key = checked_key(text, "item key", source, number)
        if key in line_of:
            raise DataFormatError(
                source, number, f"the item key {key!r} stands in line {line_of[key]} already"
            )
        line_of[key] = number
    return tuple(line_of)


def split_lines(content: bytes, source: str, *, header: bool = True) -> list[tuple[int, list[str]]]:
    """Give a file's lines that are not empty, each with its number, in columns.

    A separator counts when every line has it, as `parse_item_keys` says. With `header` a first line that
    names the column is left out.

    Raises
    ------
    DataFormatError
    """
    lines = [(number, line) for number, line in enumerate(decoded_lines(content, source), 1) if line.strip()]
    separator = _separator([line for _, line in lines])
    split = [(number, _columns(line, separator, source, number)) for number, line in lines]
    return split[1:] if header and len(split) > 1 and split[0][1][0].lower() in _HEADERS else split


def _separator(lines: list[str]) -> str | None:
    in_all = [separator for separator in _SEPARATORS if all(separator in line for line in lines)]
    if "\t" in in_all:  # which no key holds
        return "\t"
    # Later columns may hold the others: genres in bars, titles with commas.
    return min(in_all, key=lines[0].index, default=None)


def _columns(line: str, separator: str | None, source: str, number: int) -> list[str]:
    if separator == "," and '"' in line:
        try:
            return [column.strip() for column in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise DataFormatError(source, number, str(error)) from error
    return [column.strip() for column in (line.split(separator) if separator else [line])]
