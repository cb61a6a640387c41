"""Errors, exit codes and the page that lists them."""

import re
import signal
import sys
from pathlib import Path

import pytest

import trainer.errors
from broker import errors
from broker.errors import PFedRecError
from broker.exit_codes import EXIT_CODE_OF, ExitCode, exit_code_of

PAGE = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| (\d+) \| (\w+) \| (.+?) \| (.+?) \|")
KINDS: dict[str, type[PFedRecError]] = {name: getattr(errors, name) for name in errors.__all__}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def documented() -> list[tuple[int, str, str, str]]:
    """Give the page's rows: code, name, meaning, what to do."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| code ")]
    matches = [ROW.fullmatch(row) for row in rows]
    assert all(matches), rows
    return [(int(m[1]), m[2], m[3], m[4]) for m in matches if m is not None]


def code_of(kind: type[PFedRecError]) -> ExitCode:
    """Give the code of an error of `kind`, whatever its constructor wants."""
    return exit_code_of(kind.__new__(kind))


def test_page_lists_every_code_with_its_help() -> None:
    """In order, with the same number, name and meaning as the code."""
    assert [row[:3] for row in documented()] == [(code.value, code.name, code.help) for code in ExitCode]


def test_page_says_what_to_do_about_every_code() -> None:
    """A sentence each."""
    for _, name, _, advice in documented():
        assert advice.strip().endswith("."), name


def test_help_is_one_sentence() -> None:
    """Each code has one, of its own."""
    helps = [code.help for code in ExitCode]

    assert all(text[0].isupper() and text.endswith(".") and "\n" not in text for text in helps)
    assert len(set(helps)) == len(helps)


def test_codes_stay_below_those_of_shells() -> None:
    """Except 130 and 143, which shells give to what Ctrl-C and SIGTERM stopped; no two are equal."""
    values = [code.value for code in ExitCode]

    assert sorted(set(values)) == values
    assert [value for value in values if not 0 <= value < 126] == [128 + signal.SIGINT, 128 + signal.SIGTERM]
    assert (ExitCode.INTERRUPTED.value, ExitCode.TERMINATED.value) == (130, 143)


def test_usage_is_the_code_of_click() -> None:
    """Click ends with 2 for a wrong option; the project does not differ."""
    assert ExitCode.USAGE.value == 2
    assert (ExitCode.OK.value, ExitCode.UNEXPECTED.value) == (0, 1)


def test_all_lists_every_class_of_errors() -> None:
    """No error of the project is left out of the list that these tests go by."""
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, PFedRecError)
    }

    assert set(errors.__all__) == classes
    assert errors.__all__ == sorted(errors.__all__)


@every_kind
def test_class_has_one_documented_code(kind: type[PFedRecError]) -> None:
    """What a user sees after this error is on the page."""
    code = code_of(kind)

    assert [row[0] for row in documented()].count(code) == 1
    assert code is not ExitCode.OK
    assert code not in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


@every_kind
def test_class_stands_in_the_tree_and_says_what_it_is(kind: type[PFedRecError]) -> None:
    """The header of broker.errors draws every branch, that of trainer.errors its own."""
    drawn = f"{errors.__doc__}{trainer.errors.__doc__}"

    assert re.search(rf"\b{kind.__name__}\b", drawn)
    assert kind.__doc__
    assert kind.__doc__ != PFedRecError.__doc__ or kind is PFedRecError


def test_only_an_unknown_cause_is_unexpected() -> None:
    """Every branch has a code that tells more."""
    assert [name for name, kind in KINDS.items() if code_of(kind) is ExitCode.UNEXPECTED] == ["PFedRecError"]


def test_every_code_of_a_cause_has_its_error() -> None:
    """No code is on the page that nothing can end with."""
    used = {code_of(kind) for kind in KINDS.values()}

    assert set(ExitCode) - used == {ExitCode.OK, ExitCode.INTERRUPTED, ExitCode.TERMINATED}


def test_nearest_class_decides() -> None:
    """A class of a later release gets the code of its branch, a known one its own."""

    class MeltedError(errors.DiskFullError):
        """Not in the table."""

    class NewError(PFedRecError):
        """Not even in a branch."""

    assert exit_code_of(MeltedError()) is ExitCode.DISK_FULL
    assert exit_code_of(NewError()) is ExitCode.UNEXPECTED
    assert exit_code_of(errors.DataFormatError("items.csv", 3, "no key")) is ExitCode.DATA_FORMAT
    assert all(code_of(kind) is code for kind, code in EXIT_CODE_OF.items())


def test_missing_extra_names_the_command() -> None:
    """The sentence can be copied."""
    error = errors.MissingExtraError("fleet", "aiomqtt")

    assert error.extra == "fleet"
    assert str(error) == (
        "this needs the module aiomqtt, which is not installed; "
        f"install it with: {sys.executable} -m pip install 'pfedrec-edge[fleet]'"
    )
    assert exit_code_of(error) is ExitCode.MISSING_EXTRA
