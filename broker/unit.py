"""The systemd unit of a ``start``: what it says, where it lies, and what must hold before it is written.

Two forms. By default systemd makes a user of the service's own (``DynamicUser=``), and the directory is
directly below ``/var/lib`` (``StateDirectory=``). With a user who exists the directory may be anywhere.

What the service does not need is taken from it: everything is read-only but the directory, and there are no
capabilities, no devices, no other processes, no sockets but IP and Unix ones, and only the usual system
calls. ``/proc`` and ``/sys`` stay readable: a device's guards look there.
"""

import os
import pwd
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import broker
from broker.errors import AlreadyInitialisedError, InputError, NotInitialisedError
from broker.exit_codes import ExitCode
from broker.storage import named_failures, read_file, write_atomically

UNIT_DIRECTORY = Path("/etc/systemd/system")
WATCHDOG_S = 120
"""Longer than the longest step of the loop without a sign of life: a wait for a locked database."""

_STATE = Path("/var/lib")
_FINAL = (
    ExitCode.USAGE,
    ExitCode.NOT_INITIALISED,
    ExitCode.NEWER_VERSION,
    ExitCode.CORRUPT,
    ExitCode.CONFIG,
    ExitCode.MISSING_EXTRA,
)
"""What no other start will cure. Refused credentials may be: they are entered at the broker."""

_HARDENING = """
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
PrivateDevices=yes
DevicePolicy=closed
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
""".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A unit to be written.

    Attributes
    ----------
    program, module : str
        Whose ``start`` it runs: the command's name, and the module that ``python -m`` takes.
    description : str
    directory : Path
        The service's, absolute.
    user : str or None
        Who runs it; None: a user of its own.
    python : Path
        The interpreter that has the package.
    limits : tuple of str
        Lines of the program's own: its share of the machine.
    """

    program: str
    module: str
    description: str
    directory: Path
    user: str | None
    python: Path
    limits: tuple[str, ...] = ()

    def text(self) -> str:
        """Give the file's content."""
        command = [str(self.python), "-P", "-m", self.module, "start", "--dir", str(self.directory)]
        who = [f"DynamicUser=yes\nStateDirectory={_escaped(self.directory.name)}\nStateDirectoryMode=0700"]
        if self.user is not None:
            who = [f"User={self.user}", f"ReadWritePaths={_quoted(str(self.directory))}"]
        lines = [
            mark(self.program),
            "[Unit]",
            f"Description={_escaped(self.description)}",
            "After=network.target time-sync.target",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=notify",
            f"ExecStart={' '.join(_quoted(part) for part in command)}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            f"WatchdogSec={WATCHDOG_S}",
            "TimeoutStartSec=120",
            "TimeoutStopSec=20",
            "Restart=on-failure",
            "RestartSec=30",
            f"RestartPreventExitStatus={' '.join(str(int(code)) for code in _FINAL)}",
            # Told to stop before it listens for that.
            f"SuccessExitStatus={int(ExitCode.TERMINATED)}",
            "SyslogIdentifier=%N",
            # A core dump of a process that hung would hold what is nobody else's: interactions, keys.
            "LimitCORE=0",
            *self.limits,
            *who,
            *self._hiding(),
            _HARDENING,
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
        return "\n".join(lines)

    def _hiding(self) -> list[str]:
        """Hide home and temporary directories, but for what lies there."""
        needed = [self.directory, self.python, *_package_directories()]
        at_home = _any_below(needed, ("/home", "/root", "/run/user"))
        lines = [f"ProtectHome={'read-only' if at_home else 'yes'}"]
        if not _any_below(needed, ("/tmp", "/var/tmp")):  # noqa: S108 - left visible where it is needed
            lines.append("PrivateTmp=yes")
        if self.user is None or self.user != "root":
            lines.append("PrivateUsers=yes")
        return lines


def require_fit(unit: Unit) -> None:
    """Check that the unit can work on this machine.

    Raises
    ------
    InputError
        With what to do instead.
    """
    if any(sign in str(path) for path in (unit.directory, unit.python) for sign in "\n\r\0"):
        raise InputError(f"{str(unit.directory)!r} has a line break in it; no unit can name it")
    if unit.user is not None:
        return
    if unit.directory.parent != _STATE:
        raise InputError(
            f"{unit.directory} cannot belong to a user of the service's own; move it directly below "
            f"{_STATE}, or name who runs it with --user NAME"
        )
    for needed in (unit.python, *_package_directories()):
        closed = _closed_to_others(needed)
        if closed is not None:
            raise InputError(
                f"{closed} is closed to a user of the service's own, and {needed} is in it; install "
                "pfedrec-edge elsewhere, for example in /opt, or name who runs it with --user NAME"
            )


def install(unit: Unit, path: Path) -> None:
    """Write the unit; one that was written so before is replaced.

    Raises
    ------
    InputError, AlreadyInitialisedError, DiskFullError, NotWritableError
    """
    require_fit(unit)
    if unit.user is not None:
        _require_owner(unit.directory, unit.user)
    if path.exists():
        _require_ours(path, unit.program)
    write_atomically(path, unit.text().encode())


def uninstall(path: Path, program: str) -> None:
    """Remove a unit that `install` wrote for a program; the directory stays.

    Raises
    ------
    NotInitialisedError, AlreadyInitialisedError, NotWritableError
    """
    if not path.exists():
        raise NotInitialisedError(f"{path} is not there; nothing was removed")
    _require_ours(path, program)
    with named_failures(path):
        path.unlink()


def _require_owner(directory: Path, user: str) -> None:
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise InputError(f"this machine has no user {user}; make one with: useradd --system {user}") from None
    if directory.stat().st_uid != uid:
        raise InputError(
            f"{directory} does not belong to {user}, who could not write in it; "
            f"hand it over with: chown -R {user}: {directory}"
        )


def mark(program: str) -> str:
    """Give the first line of a program's units."""
    return f"# Written by {program} install-service; it is written anew by the next call."


def _require_ours(path: Path, program: str) -> None:
    if not read_file(path).decode(errors="replace").startswith(mark(program)):
        raise AlreadyInitialisedError(
            f"{path} was not written by {program} install-service and is left alone; choose another --name"
        )


def interpreter() -> Path:
    """Give the interpreter to run the service with; that of a virtual environment by its own name."""
    return Path(os.path.abspath(sys.executable))  # noqa: PTH100 - resolve() would leave the environment


def _package_directories() -> list[Path]:
    return [Path(broker.__file__).resolve().parent]


def _any_below(paths: list[Path], folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(folder) for path in paths for folder in folders)


def _closed_to_others(path: Path) -> Path | None:
    """Give the outermost directory on the way that others may not enter, if there is one."""
    for folder in reversed(path.parents):
        try:
            mode = folder.stat().st_mode
        except OSError:
            return folder
        if not mode & stat.S_IXOTH:
            return folder
    return None


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Write a word as systemd.syntax(7) and systemd.service(5) read it."""
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    plain = all(sign.isalnum() or sign in "/._-+@:,=%" for sign in escaped)
    return escaped if plain and escaped else f'"{escaped}"'
