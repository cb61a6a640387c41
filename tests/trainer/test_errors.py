import pytest

from trainer.errors import DataError, DataFormatError, DataTooSmallError, ParameterError, PFedRecError


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        (PFedRecError, Exception),
        (DataError, PFedRecError),
        (DataFormatError, DataError),
        (DataTooSmallError, DataError),
        (ParameterError, PFedRecError),
    ],
)
def test_error_tree_as_documented(error: type[Exception], parent: type[Exception]) -> None:
    """Each error hangs directly under the parent that the module's docstring draws."""
    assert error.__bases__ == (parent,)


def test_format_error_with_line() -> None:
    """The message begins with file and line, and both are attributes."""
    error = DataFormatError("ratings.csv", 7, "the item is empty")

    assert (error.source, error.line) == ("ratings.csv", 7)
    assert str(error) == "ratings.csv, line 7: the item is empty"


def test_format_error_without_line() -> None:
    """Where the whole file is wrong, the message names no line."""
    error = DataFormatError("ratings.csv", None, "the file is empty")

    assert error.line is None
    assert str(error) == "ratings.csv: the file is empty"
