"""From an error to a sentence and an exit code, and the options that programs share."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from broker import errors
from broker.commandline import Duration, Identifier, echo_facts, echo_json, run, say
from broker.exit_codes import EXIT_CODE_OF, ExitCode, exit_code_of
from trainer.errors import DataFormatError, PFedRecError

Capture = pytest.CaptureFixture[str]


def outcome(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a program that does `action`; give its exit code."""

    @click.command()
    def program() -> None:
        action()

    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    with pytest.raises(SystemExit) as caught:
        run(program, "prog")
    assert isinstance(caught.value.code, int)
    return int(caught.value.code)


def raising(error: BaseException) -> Callable[[], object]:
    """Give an action that fails with `error`."""

    def action() -> None:
        raise error

    return action


def an_error(kind: type[PFedRecError]) -> PFedRecError:
    """Give an error of any class of ours."""
    if kind is errors.MissingExtraError:
        return errors.MissingExtraError("fleet", "aiomqtt")
    if kind is DataFormatError:
        return DataFormatError("file", 3, "what is wrong")
    return kind("what is wrong")


EVERY_ERROR = sorted(
    (getattr(errors, name) for name in errors.__all__), key=lambda kind: (kind.__module__, kind.__name__)
)


# --- exit codes and sentences ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_known_error_is_one_sentence_and_its_code(
    kind: type[PFedRecError], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Each error that the project knows ends a program with one line on stderr and a documented code."""
    error = an_error(kind)

    code = outcome(raising(error), monkeypatch)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"prog: {error}\n"
    nearest = next(parent for parent in inspect.getmro(kind) if parent in EXIT_CODE_OF)
    assert code == exit_code_of(error) == EXIT_CODE_OF[nearest] != ExitCode.OK


def test_success_is_code_zero(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A program that did its work says nothing by itself."""
    assert outcome(lambda: click.echo("fact"), monkeypatch) == 0
    assert capsys.readouterr() == ("fact\n", "")


def test_help_is_code_zero(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Asking for help is no error."""
    assert outcome(raising(AssertionError()), monkeypatch, "--help") == 0
    assert capsys.readouterr().out.startswith("Usage: prog")


def test_wrong_option_is_code_two(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """One sentence that names the help, and nothing was done."""
    assert outcome(raising(AssertionError()), monkeypatch, "--no-such") == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "No such option" in said
    assert said.endswith("; see prog --help\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.exceptions.Abort()])
def test_ctrl_c_is_code_130(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Stopping a one-shot command is no failure of the command."""
    assert outcome(raising(error), monkeypatch) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err.strip() == "prog: stopped by Ctrl-C"


def test_unknown_error_is_code_one_and_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """An error that nobody expected is a sentence with what to do about it."""
    monkeypatch.delenv("PFEDREC_TRACEBACK", raising=False)

    assert outcome(raising(ZeroDivisionError("odd")), monkeypatch) == ExitCode.UNEXPECTED

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("prog: unexpected ZeroDivisionError: odd; please report it")
    assert "PFEDREC_TRACEBACK=1" in lines[0]


def test_unknown_error_has_its_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A variable shows where it came from, for the report."""
    monkeypatch.setenv("PFEDREC_TRACEBACK", "1")

    assert outcome(raising(ZeroDivisionError("odd")), monkeypatch) == ExitCode.UNEXPECTED

    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "x", "file"), ExitCode.DISK_FULL, "no space is left for file"),
        (PermissionError(errno.EACCES, "x", "file"), ExitCode.NOT_WRITABLE, "file cannot be written"),
    ],
)
def test_systems_error_that_nobody_named_gets_its_code(
    error: OSError, code: ExitCode, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A full disk is a full disk wherever it is noticed."""
    assert outcome(raising(error), monkeypatch) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("sqlalchemy.orm", "aggregator"),
        ("amqtt", "aggregator"),
        ("aiomqtt", "fleet"),
        ("tensorflow", "firmware"),
    ],
)
def test_missing_extra_names_the_command(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A part of the package that is not installed is one sentence with what to run."""
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert outcome(raising(error), monkeypatch) == ExitCode.MISSING_EXTRA

    assert f"{sys.executable} -m pip install 'pfedrec-edge[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no_such_module", None])
def test_other_missing_module_is_unexpected(
    name: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A module that no extra has is a mistake of ours."""
    error = ModuleNotFoundError("No module named x", name=name)

    assert outcome(raising(error), monkeypatch) == ExitCode.UNEXPECTED
    assert "unexpected ModuleNotFoundError" in capsys.readouterr().err


# --- in a process of its own -------------------------------------------------------------------------

PROGRAM = """
import click, signal, sys
from broker.commandline import run

@click.command()
@click.argument("kilobytes", type=int)
def program(kilobytes):
    for _ in range(kilobytes):
        click.echo("x" * 1023)

@click.command()
def waiting():
    click.echo("ready")
    sys.stdout.flush()
    signal.pause()

run(waiting if sys.argv[1:] == [] else program, "prog")
"""


@pytest.mark.process
@pytest.mark.parametrize("kilobytes", [1, 1000])
def test_reader_that_has_gone_ends_the_program_in_silence(kilobytes: int) -> None:
    """`... | head` is no failure, whether it is noticed at once or with the last byte."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(kilobytes)],
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.process
@pytest.mark.parametrize("kilobytes", [1, 1000])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_that_finds_no_space_is_a_full_disk(kilobytes: int) -> None:
    """What was printed and lost is an error, in one sentence."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(kilobytes)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.stderr.splitlines() == [done.stderr.rstrip("\n")]
    assert "no space is left for the output" in done.stderr
    assert done.returncode == ExitCode.DISK_FULL


@pytest.mark.process
def test_ctrl_c_in_a_terminal_is_code_130() -> None:
    """The signal itself, not only the exception that Python makes of it."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)

    assert process.returncode == ExitCode.INTERRUPTED
    assert stderr.strip() == "prog: stopped by Ctrl-C"


# --- options and output ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("12", 12.0),
        ("1.5m", 90.0),
        (" 3s ", 3.0),
        ("0", 0.0),
    ],
)
def test_duration_is_a_number_with_or_without_a_unit(text: str, seconds: float) -> None:
    """Seconds come out."""
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [3, 2.5])
def test_duration_that_is_a_number_already_stays(value: float) -> None:
    """Defaults are given as seconds."""
    assert Duration().convert(value, None, None) == float(value)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1w", "1e3", "1h30m", "nan", "inf", ".5s", "5S"])
def test_duration_that_is_none_is_refused_with_examples(text: str) -> None:
    """The sentence shows how a time span is written."""
    with pytest.raises(click.BadParameter, match="write for example 500ms, 30s, 5m or 2h"):
        Duration().convert(text, None, None)


@given(number=st.integers(0, 10**6), unit=st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_duration_grows_with_its_unit(number: int, unit: str) -> None:
    """A unit is a factor."""
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]

    assert Duration().convert(f"{number}{unit}", None, None) == pytest.approx(number * factor)


def test_identifier_is_taken_unchanged_or_refused() -> None:
    """An id that MQTT or a file system would stumble over is a usage error with what is allowed."""
    assert Identifier("the fleet name").convert("Shop-1.x", None, None) == "Shop-1.x"
    with pytest.raises(click.BadParameter, match=r"the fleet name 'a/b' is not allowed; use 1 to 64"):
        Identifier("the fleet name").convert("a/b", None, None)


def test_wrong_option_value_names_its_option() -> None:
    """Both types end as click's usage errors."""

    @click.command()
    @click.option("--wait", type=Duration())
    @click.option("--name", type=Identifier("the name"))
    def program(wait: float | None, name: str | None) -> None:
        pytest.fail(f"was called with {wait} and {name}")

    for arguments in (["--wait", "soon"], ["--name", "+"]):
        result = CliRunner().invoke(program, arguments)
        assert result.exit_code == ExitCode.USAGE
        assert f"Invalid value for '{arguments[0]}'" in result.stderr


def test_facts_are_aligned(capsys: Capture) -> None:
    """A name and a value a line."""
    echo_facts({"a": 1, "longer": "x"})

    assert capsys.readouterr().out == "a       1\nlonger  x\n"


def test_json_is_one_document_in_plain_unicode(capsys: Capture) -> None:
    """What programs read can be read by people, too."""
    echo_json({"key": "映画", "none": None})

    captured = capsys.readouterr().out
    assert json.loads(captured) == {"key": "映画", "none": None}
    assert "映画" in captured


def test_what_is_no_result_goes_to_stderr(capsys: Capture) -> None:
    """A pipe gets results only."""
    say("a sentence")

    assert capsys.readouterr() == ("", "a sentence\n")
