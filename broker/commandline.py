"""What the four programs share where they meet the user: exit codes, sentences, option types.

Only the ``cli.py`` files import this. It owns the way from an error to a sentence on stderr and an
exit code, and knows no command.
"""

import contextlib
import errno
import ipaddress
import json
import math
import os
import re
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from broker.errors import AttentionError, InputError, MissingExtraError, PFedRecError
from broker.exit_codes import ExitCode, exit_code_of
from broker.findings import Finding, Level
from broker.journal import ERROR, NOTICE, WARNING, Trouble, marked
from broker.protocol.topics import checked_id
from broker.storage import os_failure
from trainer.errors import ParameterError

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EROFS, errno.EFBIG)
"""What writing to a full or lost output gives, without a file's name."""
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_LONGEST_HOST_NAME = 253
_EXTRA_OF_MODULE = {
    "sqlalchemy": "aggregator",
    "amqtt": "aggregator",
    "cryptography": "aggregator",
    "prometheus_client": "aggregator",
    "aiomqtt": "fleet",
    "matplotlib": "report",
    "sklearn": "report",
    "tensorflow": "firmware",
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SECONDS_OF_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def run(command: click.Command, prog: str) -> NoReturn:
    """Run a program's command line and end the process with a documented exit code.

    An error that the project knows becomes one sentence on stderr. One that it does not know becomes one
    too, with code 1; ``PFEDREC_TRACEBACK=1`` shows where it came from.
    """
    code: int = ExitCode.OK
    try:
        with _terminating():
            outcome = command.main(prog_name=prog, standalone_mode=False)
        # Without standalone mode click returns the code of --help and the like.
        code = outcome if isinstance(outcome, int) else ExitCode.OK
        if sys.stdout is not None:  # it may have been closed by the caller
            sys.stdout.flush()
    except TerminatedError:
        code = _say(prog, "stopped by SIGTERM", ExitCode.TERMINATED)
    except click.exceptions.Abort as abort:
        # Click makes it of our own, too, which is a KeyboardInterrupt.
        if isinstance(abort.__cause__, TerminatedError):
            code = _say(prog, "stopped by SIGTERM", ExitCode.TERMINATED)
        else:
            code = _say(prog, "stopped by Ctrl-C", ExitCode.INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _say_usage(prog, error)
    except PFedRecError as error:
        code = _say(prog, str(error), exit_code_of(error))
    except ModuleNotFoundError as error:
        code = _say_missing(prog, error)
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has gone (as in `... | head`), of which click makes SystemExit(1) even
        # without standalone mode. There is nobody left to tell.
        _give_up_output()
    except Exception as error:  # noqa: BLE001 - the last resort of a program: a sentence, not a traceback
        code = _say_unknown(prog, error)
        if isinstance(error, OSError):
            _give_up_output()
    sys.exit(code)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; of the kind that nobody on the way up handles."""


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise TerminatedError


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, clearing up what was begun; services handle it themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    # The system's way while programs are imported (`broker.entry`), and again while the interpreter ends.
    was_default = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if was_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if was_default:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _give_up_output() -> None:
    """Let what could not be written go, so that the interpreter does not try again as it ends."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(prog: str, sentence: str, code: ExitCode) -> ExitCode:
    click.echo(marked(f"{prog}: {sentence}", ERROR), err=True)
    return code


def _say_usage(prog: str, error: click.ClickException) -> int:
    """Tell what is wrong with a call in one sentence, and where its help is."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = prog if context is None else context.command_path
    click.echo(f"{prog}: {error.format_message().rstrip('.')}; see {path} --help", err=True)
    return error.exit_code


def _say_missing(prog: str, error: ModuleNotFoundError) -> ExitCode:
    module = (error.name or "").split(".")[0]
    if module in _EXTRA_OF_MODULE:
        # The fleet's extra includes the aggregator's.
        extra = _EXTRA_OF_MODULE[module]
        if prog == "edge-fleet" and extra == "aggregator":
            extra = "fleet"
        missing = MissingExtraError(extra, module)
        return _say(prog, str(missing), exit_code_of(missing))
    return _say_unknown(prog, error)


def _say_unknown(prog: str, error: Exception) -> ExitCode:
    if os.environ.get("PFEDREC_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, OSError) and (error.filename or error.errno in _OUTPUT_ERRORS):
        known = os_failure(error, None)
        return _say(prog, str(known), exit_code_of(known))
    return _say(
        prog,
        f"unexpected {type(error).__name__}: {error}; please report it with the output of "
        "PFEDREC_TRACEBACK=1 set",
        ExitCode.UNEXPECTED,
    )


class Duration(click.ParamType[float]):
    """A time span: ``500ms``, ``30s``, ``5m``, ``2h``, ``7d``, or a number of seconds.

    Parameters
    ----------
    least_s, most_s : float
        Its bounds in seconds.
    """

    name = "duration"

    def __init__(self, least_s: float = 0.0, most_s: float = math.inf) -> None:
        self._least_s, self._most_s = least_s, most_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no time span; write for example 500ms, 30s, 5m or 2h", param, ctx)
        seconds = float(match[1]) * _SECONDS_OF_UNIT[match[2] or "s"]
        if not self._least_s <= seconds <= self._most_s:
            self.fail(f"{value!r} is not between {self._least_s:g} s and {self._most_s:g} s", param, ctx)
        return seconds


class Identifier(click.ParamType[str]):
    """A fleet's name or a device's id."""

    name = "id"

    def __init__(self, what: str) -> None:
        self.what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the id unchanged."""
        try:
            return checked_id(str(value), self.what)
        except ParameterError as error:
            self.fail(str(error), param, ctx)


class PathName(click.Path[Path]):
    """A file's or a directory's name, which has to be one.

    Nothing, as an unset variable of a script gives it, would be the directory that the caller is in.

    Parameters
    ----------
    file_okay, dir_okay : bool
        Whether there may be a file, and a directory.
    readable : bool
        Whether the user has to be allowed to read what is there.
    """

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True, readable: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay, readable=readable)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Give the path."""
        if not os.fspath(value):
            self.fail(f"'' names no {self.name}", param, ctx)
        return super().convert(value, param, ctx)


class HostName(click.ParamType[str]):
    """A machine's name or address, as it can stand in a certificate and in an address."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give it unchanged."""
        text = str(value)
        is_name = _HOST_NAME.fullmatch(text) is not None and len(text) <= _LONGEST_HOST_NAME
        if not is_name or text.rpartition(".")[2].isdecimal():  # no name ends with a number
            try:
                ipaddress.ip_address(text)
            except ValueError:
                self.fail(f"{text!r} is no host's name or address, without a port", param, ctx)
        return text


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be taken back, unless the answer was given with the command.

    Raises
    ------
    click.UsageError
        When there is nobody to ask.
    InputError
        When the answer is no.
    """
    if yes:
        return
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError(f"{question} There is nobody to ask; add --yes to do it without a question")
    if not click.confirm(question, err=True):
        raise InputError("nothing was changed")


class Setting(click.ParamType[tuple[str, Any]]):
    """KEY=VALUE, the value as in TOML; what is no TOML value is text."""

    name = "setting"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Cut at the first ``=``."""
        key, sign, text = str(value).partition("=")
        if not sign or not key.strip():
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        return key.strip(), toml_value(text.strip())


def toml_value(text: str) -> Any:
    """Read one value as TOML has it; text that is none is given back as it is."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A text of several lines could hold more than the one value.
    return parsed["value"] if len(parsed) == 1 else text


def echo_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print facts for machines: one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def echo_facts(facts: Mapping[str, object]) -> None:
    """Print facts for people: a name and a value a line, values aligned."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


def report(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what an examination has found.

    Raises
    ------
    AttentionError
        When something must be done.
    """
    problems = [each.check for each in findings if each.level is Level.PROBLEM]
    if as_json:
        echo_json({"ok": not problems, "findings": [asdict(each) for each in findings]})
    else:
        for each in findings:
            click.echo(f"{each.level:<9}  {each.check:<12}  {each.found}")
            if each.remedy:
                click.echo(f"{'':<9}  {'':<12}  do: {each.remedy}")
    if problems:
        raise AttentionError(f"something must be done about: {', '.join(problems)}")


def say(sentence: str) -> None:
    """Tell the user something that is not a result: on stderr; `Trouble` as a warning."""
    click.echo(marked(sentence, WARNING if isinstance(sentence, Trouble) else NOTICE), err=True)
