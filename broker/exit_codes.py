"""The exit codes of all commands, and which error leaves which code.

Ranges of ten by cause; all below 126, where shells begin their own. ``docs/exit-codes.md`` lists them
for users, and a test holds the two together.
"""

from enum import IntEnum
from typing import Self

from broker import errors


class ExitCode(IntEnum):
    """A command's exit status, with one sentence of help."""

    help: str

    def __new__(cls, value: int, help_text: str) -> Self:
        """Attach the help to the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.help = help_text
        return member

    OK = 0, "Done; for a service, stopped by SIGTERM or SIGINT."
    UNEXPECTED = 1, "An error that this project does not know; please report it."
    USAGE = 2, "A wrong option or argument; nothing was done."

    FILE_UNREADABLE = 10, "A file that was named is missing or cannot be read."
    DATA_FORMAT = 11, "A data file is empty, binary or has a line that cannot be read."
    DATA_TOO_SMALL = 12, "A data file is readable but holds too little."
    UNKNOWN_ITEM = 13, "An item is not in the fleet's catalogue."
    NOTHING_YET = 14, "The answer needs interactions or a model that are not there yet."

    NOT_INITIALISED = 20, "The directory was not set up with init."
    ALREADY_INITIALISED = 21, "The directory was set up before; init changes nothing."
    NOT_WRITABLE = 22, "The directory or a file in it cannot be written."
    IN_USE = 23, "Another process works in the directory, or serves the fleet."
    DISK_FULL = 24, "No space is left on the device; the state is as before."
    NEWER_VERSION = 25, "A later release wrote the directory; it was left untouched."
    CORRUPT = 26, "A database or model file in the directory is damaged."
    CONFIG = 27, "The configuration has a wrong or unknown entry."
    EARLIER_VERSION = 28, "An earlier release wrote the directory; it was left untouched."

    UNREACHABLE = 30, "No MQTT broker answers at the address."
    REFUSED = 31, "The broker refuses the client (user name, password or client id)."
    FLEET_MISMATCH = 32, "Device and aggregator do not belong together."
    BROKER_START = 33, "The command's own broker does not start, for example as its port is taken."
    TIMED_OUT = 34, "The work was not finished in its time."
    WORKER_DIED = 35, "A process that shares the command's work has ended, perhaps as memory ran out."
    ADDRESS_IN_USE = (
        36,
        "A port cannot be listened on, a local API's or that of metrics, for example as it is taken.",
    )

    STORE_LOST = 37, "The aggregator's database server does not answer."
    STORE_REFUSED = 38, "The aggregator's database server refuses the user, or has no such database."

    MISSING_EXTRA = 40, "A part of the package is not installed; the sentence names the command."

    ATTENTION = 50, "An examination found something that must be done."

    BUNDLE_DAMAGED = 60, "A file is no bundle, or was changed after it was signed."
    BUNDLE_CUT_OFF = 61, "A bundle's end is missing."
    BUNDLE_TOO_LARGE = 62, "A bundle is larger than is allowed."
    BUNDLE_UNTRUSTED = 63, "A bundle is signed with a key that is none of the fleet's."
    BUNDLE_FOREIGN = 64, "A bundle is for another fleet."
    BUNDLE_OLDER = 65, "A bundle's release is not newer than one that has worked here."
    BUNDLE_UNFIT = 66, "A bundle needs what this device does not have or does not allow."
    BUNDLE_FORBIDDEN = 67, "A bundle has a file, a path or a setting that no bundle may have."
    BATCH_NOT_GENUINE = (
        70,
        "A provisioned batch is not whole, was changed, or is signed by nobody who is believed.",
    )
    CLAIM_REFUSED = 71, "A claim code is wrong, was used before, or is out of date."

    INTERRUPTED = 130, "Stopped by Ctrl-C."
    TERMINATED = 143, "Stopped by SIGTERM; a service that is told to stop ends with 0."


EXIT_CODE_OF: dict[type[errors.PFedRecError], ExitCode] = {
    errors.DataFormatError: ExitCode.DATA_FORMAT,
    errors.DataTooSmallError: ExitCode.DATA_TOO_SMALL,
    errors.DataError: ExitCode.DATA_FORMAT,
    errors.ParameterError: ExitCode.USAGE,
    errors.FileUnreadableError: ExitCode.FILE_UNREADABLE,
    errors.UnknownItemError: ExitCode.UNKNOWN_ITEM,
    errors.NothingYetError: ExitCode.NOTHING_YET,
    errors.InputError: ExitCode.USAGE,
    errors.NotInitialisedError: ExitCode.NOT_INITIALISED,
    errors.AlreadyInitialisedError: ExitCode.ALREADY_INITIALISED,
    errors.NotWritableError: ExitCode.NOT_WRITABLE,
    errors.InUseError: ExitCode.IN_USE,
    errors.DiskFullError: ExitCode.DISK_FULL,
    errors.NewerVersionError: ExitCode.NEWER_VERSION,
    errors.EarlierVersionError: ExitCode.EARLIER_VERSION,
    errors.CorruptError: ExitCode.CORRUPT,
    errors.ConfigError: ExitCode.CONFIG,
    errors.SetupError: ExitCode.CONFIG,
    errors.UnreachableError: ExitCode.UNREACHABLE,
    errors.RefusedError: ExitCode.REFUSED,
    errors.FleetMismatchError: ExitCode.FLEET_MISMATCH,
    errors.ProtocolError: ExitCode.FLEET_MISMATCH,
    errors.BrokerStartError: ExitCode.BROKER_START,
    errors.AddressInUseError: ExitCode.ADDRESS_IN_USE,
    errors.StoreLostError: ExitCode.STORE_LOST,
    errors.StoreRefusedError: ExitCode.STORE_REFUSED,
    errors.LinkError: ExitCode.UNREACHABLE,
    errors.TimedOutError: ExitCode.TIMED_OUT,
    errors.WorkerDiedError: ExitCode.WORKER_DIED,
    errors.MissingExtraError: ExitCode.MISSING_EXTRA,
    errors.ClaimRefusedError: ExitCode.CLAIM_REFUSED,
    errors.BatchNotGenuineError: ExitCode.BATCH_NOT_GENUINE,
    errors.AttentionError: ExitCode.ATTENTION,
    errors.BundleDamagedError: ExitCode.BUNDLE_DAMAGED,
    errors.BundleCutOffError: ExitCode.BUNDLE_CUT_OFF,
    errors.BundleTooLargeError: ExitCode.BUNDLE_TOO_LARGE,
    errors.BundleUntrustedError: ExitCode.BUNDLE_UNTRUSTED,
    errors.BundleForeignError: ExitCode.BUNDLE_FOREIGN,
    errors.BundleOlderError: ExitCode.BUNDLE_OLDER,
    errors.BundleUnfitError: ExitCode.BUNDLE_UNFIT,
    errors.BundleForbiddenError: ExitCode.BUNDLE_FORBIDDEN,
    errors.BundleError: ExitCode.BUNDLE_DAMAGED,
    errors.PFedRecError: ExitCode.UNEXPECTED,
}
"""The nearest class among an error's ancestors decides."""


def exit_code_of(error: errors.PFedRecError) -> ExitCode:
    """Give the code that a command ends with when `error` reaches its top."""
    return next(EXIT_CODE_OF[kind] for kind in type(error).__mro__ if kind in EXIT_CODE_OF)
