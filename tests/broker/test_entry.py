"""A program's first step, and Ctrl-C before and after it."""

import signal
import subprocess
import sys

import pytest

from broker.exit_codes import ExitCode

# A program's module whose import takes long, or which then runs a command that does.
_FAKE = """
import os, signal, sys, types
import click
from broker import entry
from broker.commandline import run

moment = sys.argv.pop()

def main():
    run(click.Command("slow", callback=interrupted), "slow")

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()

def import_module(name):
    if moment == "importing":
        interrupted()
    return types.SimpleNamespace(main=main)

entry.importlib = types.SimpleNamespace(import_module=import_module)
entry.edge_client()
"""


@pytest.mark.process
def test_interrupted_import_ends_without_a_word() -> None:
    """As the system ends programs; a shell shows 130."""
    ended = subprocess.run([sys.executable, "-c", _FAKE, "importing"], capture_output=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.process
def test_interrupted_command_says_so() -> None:
    """From the first line of a command on."""
    ended = subprocess.run([sys.executable, "-c", _FAKE, "running"], capture_output=True, check=False)

    assert (ended.returncode, ended.stdout) == (ExitCode.INTERRUPTED, b"")
    assert ended.stderr.strip().endswith(b"slow: stopped by Ctrl-C")


@pytest.mark.process
def test_ignored_interrupt_stays_ignored() -> None:
    """As with nohup and in the background of a script."""
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + _FAKE.replace(
        "signal.pause()", "print('goes on')"
    )

    ended = subprocess.run([sys.executable, "-c", program, "running"], capture_output=True, check=False)

    assert (ended.returncode, ended.stdout) == (0, b"goes on\n")
