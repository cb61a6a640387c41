"""The root of every error that this project raises on purpose, and those of the mathematics.

::

    PFedRecError
    ├── DataError            the user's data: correct the file and try again
    │   ├── DataFormatError    a line that cannot be read
    │   └── DataTooSmallError  readable, but too little to learn or evaluate
    └── ParameterError       an argument out of range, or arrays of the wrong shape

``broker.errors`` and ``edge.errors`` hang their own branches under the same root.
"""


class PFedRecError(Exception):
    """Something this project understands and explains in one sentence."""


class DataError(PFedRecError):
    """The user's data cannot be used as it is."""


class DataFormatError(DataError):
    """A line of a data file that cannot be read.

    Attributes
    ----------
    source : str
        The file's name as the user gave it.
    line : int or None
        One-based line number, None where the file as a whole is wrong.
    """

    def __init__(self, source: str, line: int | None, problem: str) -> None:
        self.source = source
        self.line = line
        where = source if line is None else f"{source}, line {line}"
        super().__init__(f"{where}: {problem}")


class DataTooSmallError(DataError):
    """Readable data with too few interactions, users or items for what was asked."""


class ParameterError(PFedRecError):
    """An argument that is out of its range, or arrays whose shapes do not fit."""
