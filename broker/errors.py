"""What can go wrong outside the mathematics, cut by what the reader of the message can do about it.

::

    PFedRecError                      (trainer.errors)
    ├── DataError, ParameterError       (trainer.errors)
    ├── ProtocolError                 a message that is dropped and counted; the sender is to blame
    │   ├── MalformedError              not the CBOR that the protocol allows
    │   ├── SchemaError                 well formed, but not the message it should be
    │   ├── EncodingError               an update whose body does not fit the table
    │   ├── TransferError               chunks that do not make a whole
    │   ├── HashMismatchError           a whole with the wrong SHA-256
    │   ├── SignatureError              a head that is not signed as it must be, or is an old one again
    │   └── NotAdmittedError            a device that may not send this
    │       ├── BlockedDeviceError, UnlistedDeviceError, LapsedDeviceError
    │       └── RateLimitError, TooManyDevicesError, TooManyIncarnationsError
    ├── InputError                    what the user gave: correct it and call again
    │   ├── FileUnreadableError
    │   ├── UnknownItemError
    │   └── NothingYetError             asked for something that needs data or a model first
    ├── SetupError                    a directory or its configuration
    │   ├── NotInitialisedError, AlreadyInitialisedError
    │   ├── NotWritableError, InUseError, DiskFullError
    │   ├── NewerVersionError           written by a later release; left untouched
    │   ├── EarlierVersionError         written by an earlier one, where nothing may be changed
    │   ├── CorruptError
    │   └── ConfigError
    ├── LinkError                     the network
    │   ├── UnreachableError            may pass: services retry
    │   ├── RefusedError                credentials or identity: never retried
    │   ├── FleetMismatchError          the two ends do not belong together
    │   ├── BrokerStartError            a broker of our own that does not run
    │   ├── AddressInUseError           a port that we were to listen on
    │   ├── StoreLostError              a database server that does not answer: services retry
    │   └── StoreRefusedError           one that refuses us: never retried
    ├── BundleError                   a release that is not taken; what is installed stays
    │   ├── BundleDamagedError          no bundle, or changed after it was signed
    │   ├── BundleCutOffError, BundleTooLargeError
    │   ├── BundleUntrustedError        signed with a key that is none of the fleet's
    │   ├── BundleForeignError          for another fleet
    │   ├── BundleOlderError            not newer than what was here
    │   ├── BundleUnfitError            for another processor or a later release of ours, or asks for too much
    │   └── BundleForbiddenError        has what no bundle may have
    ├── ClaimRefusedError             a claim that lets no device in
    ├── BatchNotGenuineError          provisioned devices that are not as they were signed
    ├── TimedOutError                 a bounded wait that ended
    ├── AttentionError                an examination that found something to be done
    ├── WorkerDiedError               a process of our own that ended by itself
    └── MissingExtraError             a part of the package that is not installed
"""

import shlex
import sys

from trainer.errors import DataError, DataFormatError, DataTooSmallError, ParameterError, PFedRecError

__all__ = [
    "AddressInUseError",
    "AlreadyInitialisedError",
    "AttentionError",
    "BatchNotGenuineError",
    "BlockedDeviceError",
    "BrokerStartError",
    "BundleCutOffError",
    "BundleDamagedError",
    "BundleError",
    "BundleForbiddenError",
    "BundleForeignError",
    "BundleOlderError",
    "BundleTooLargeError",
    "BundleUnfitError",
    "BundleUntrustedError",
    "ClaimRefusedError",
    "ConfigError",
    "CorruptError",
    "DataError",
    "DataFormatError",
    "DataTooSmallError",
    "DiskFullError",
    "EarlierVersionError",
    "EncodingError",
    "FileUnreadableError",
    "FleetMismatchError",
    "HashMismatchError",
    "InUseError",
    "InputError",
    "LapsedDeviceError",
    "LinkError",
    "MalformedError",
    "MissingExtraError",
    "NewerVersionError",
    "NotAdmittedError",
    "NotInitialisedError",
    "NotWritableError",
    "NothingYetError",
    "PFedRecError",
    "ParameterError",
    "ProtocolError",
    "RateLimitError",
    "RefusedError",
    "SchemaError",
    "SetupError",
    "SignatureError",
    "StoreLostError",
    "StoreRefusedError",
    "TimedOutError",
    "TooManyDevicesError",
    "TooManyIncarnationsError",
    "TransferError",
    "UnknownItemError",
    "UnlistedDeviceError",
    "UnreachableError",
    "WorkerDiedError",
]


class ProtocolError(PFedRecError):
    """A message that the protocol does not allow."""


class MalformedError(ProtocolError):
    """Bytes that are not the subset of CBOR that the protocol uses, or that exceed its limits."""


class SchemaError(ProtocolError):
    """Well-formed CBOR that is not the expected message."""


class EncodingError(ProtocolError):
    """An update whose body does not decode to finite changes of distinct rows of the table."""


class TransferError(ProtocolError):
    """Chunks that contradict each other."""


class HashMismatchError(ProtocolError):
    """Assembled bytes whose SHA-256 is not the announced one."""


class SignatureError(ProtocolError):
    """A head that a device does not believe."""


class NotAdmittedError(ProtocolError):
    """A message that the aggregator does not take from this device, whatever is in it."""


class BlockedDeviceError(NotAdmittedError):
    """A device on the operator's block list."""


class UnlistedDeviceError(NotAdmittedError):
    """A device that is not on the operator's allow list."""


class LapsedDeviceError(NotAdmittedError):
    """A device none of whose certificates counts any more, on a connection that began when one did."""


class RateLimitError(NotAdmittedError):
    """A device that sends more than its rate; `answered` tells whether it is told."""

    def __init__(self, sentence: str, *, answered: bool = True) -> None:
        self.answered = answered
        super().__init__(sentence)


class TooManyDevicesError(NotAdmittedError):
    """One more device than the aggregator takes."""


class TooManyIncarnationsError(NotAdmittedError):
    """A device that begins anew once more than is remembered."""


class InputError(PFedRecError):
    """Something in the call itself."""


class FileUnreadableError(InputError):
    """A file that is missing or cannot be read."""


class UnknownItemError(InputError):
    """An item key that the catalogue does not have."""


class NothingYetError(InputError):
    """The device has not got far enough to answer."""


class SetupError(PFedRecError):
    """A directory of this project, or its configuration, is not fit for use."""


class NotInitialisedError(SetupError):
    """No ``init`` was run in the directory."""


class AlreadyInitialisedError(SetupError):
    """``init`` was run in the directory before."""


class NotWritableError(SetupError):
    """The directory or file cannot be written."""


class InUseError(SetupError):
    """Another process works in the directory."""


class DiskFullError(SetupError):
    """No space is left; nothing was half written."""


class EarlierVersionError(SetupError):
    """A directory that an earlier release wrote, asked by a command that changes nothing."""


class NewerVersionError(SetupError):
    """A later release wrote the database; this one leaves it untouched."""


class CorruptError(SetupError):
    """A database or model file that fails its integrity check."""


class ConfigError(SetupError):
    """A configuration file or environment variable with a wrong or unknown entry."""


class LinkError(PFedRecError):
    """The broker cannot be used."""


class UnreachableError(LinkError):
    """No broker answers; it may pass."""


class RefusedError(LinkError):
    """The broker refuses this client; trying again would not help."""


class FleetMismatchError(LinkError):
    """Device and aggregator do not belong to the same fleet, or not to the same protocol version."""


class BrokerStartError(LinkError):
    """A broker that we were to run does not start or does not stay up."""


class AddressInUseError(LinkError):
    """A port that we were to listen on cannot be had."""


class StoreLostError(LinkError):
    """The database server of a store does not answer; it may pass."""


class StoreRefusedError(LinkError):
    """The database server refuses the user, or lacks the database; trying again would not help."""


class BundleError(PFedRecError):
    """A bundle whose release is not taken; nothing that works was touched."""


class BundleDamagedError(BundleError):
    """Something that is no bundle, or one that was changed after it was signed."""


class BundleCutOffError(BundleError):
    """A bundle whose end is missing."""


class BundleTooLargeError(BundleError):
    """A bundle of more bytes than are taken."""


class BundleUntrustedError(BundleError):
    """A bundle that is signed with none of the keys that are believed."""


class BundleForeignError(BundleError):
    """A bundle for another fleet."""


class BundleOlderError(BundleError):
    """A bundle with a release that is not newer than one that has worked here."""


class BundleUnfitError(BundleError):
    """A bundle that needs what this device does not have or does not allow."""


class BundleForbiddenError(BundleError):
    """A bundle with a file, a path or a setting that no bundle may have."""


class BatchNotGenuineError(PFedRecError):
    """A provisioned batch that is not whole, was changed, or is signed by nobody who is believed."""


class ClaimRefusedError(PFedRecError):
    """A claim that is unknown, was used, or is out of date."""


class TimedOutError(PFedRecError):
    """Something bounded did not finish in its time."""


class AttentionError(PFedRecError):
    """An examination was made, and something must be done."""


class WorkerDiedError(PFedRecError):
    """A process that shares a command's work ended by itself."""


class MissingExtraError(PFedRecError):
    """A package of an extra is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        super().__init__(
            f"this needs the module {module}, which is not installed; "
            f"install it with: {shlex.quote(sys.executable)} -m pip install 'pfedrec-edge[{extra}]'"
        )
