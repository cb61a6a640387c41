"""Which ids were ever given to devices: one file a batch in ``DIR/batches``, beside the register.

A batch is reserved, durably, before the first of its certificates is made, and finished after the last of its
files is in its place. What is reserved is given to nobody else: not by another run, not after a crash, not by
a run on another machine's copy of the authority, as ids are drawn at random. A run that was cut off is gone
on with, for the same ids, by the same call.

`Authority` calls what is here, under its lock.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from broker.errors import CorruptError, InputError
from broker.protocol.topics import checked_id
from broker.storage import make_directory, read_file, write_atomically

BATCHES = "batches"
MOST_DEVICES = 10_000
LETTERS = "23456789abcdefghjkmnpqrstvwxyz"
"""Without those that are taken for one another."""
_DRAWN = 10
"""Letters of an id that tell it from others: 30^10, about 2^49. Two copies of an authority, each with 10,000
ids, give one twice with a probability of 2e-7; within one authority the ledger makes it impossible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Ids that were given together.

    Attributes
    ----------
    name : str
        Of the batch, and of its file.
    request : dict
        What was asked for, with where it goes; the same call asks for the same.
    devices : tuple of str
    made_at : str
        ISO 8601, UTC.
    finished : bool
        Whether all of it is where it was asked for.
    """

    name: str
    request: dict[str, object]
    devices: tuple[str, ...]
    made_at: str
    finished: bool = False


def drawn_ids(prefix: str, count: int) -> list[str]:
    """Draw ids ``PREFIX-xxxxxxxxxx``, all different.

    Raises
    ------
    ParameterError
        When the prefix cannot begin an id.
    """
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids[checked_id(f"{prefix}-{_drawn(_DRAWN)}", "the device id")] = None
    return list(ids)


def _drawn(letters: int) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(letters))


def read_batches(folder: Path) -> list[Batch]:
    """Give all batches.

    Raises
    ------
    CorruptError
        When the file of one is damaged: what it has given is unknown, so nothing can be given any more.
    """
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def write_batch(folder: Path, batch: Batch) -> None:
    """Write a batch's file."""
    write_atomically(folder / f"{batch.name}.json", json.dumps(asdict(batch)).encode(), mode=0o600)


def reserve(
    folder: Path,
    request: dict[str, object],
    devices: Sequence[str] | None,
    registered: set[str],
    now: datetime,
) -> tuple[Batch, bool]:
    """Reserve ids for a request; tell whether an earlier run had done so, and was cut off.

    Parameters
    ----------
    request : dict
        ``out``: where it goes; ``renew``: whether it is for devices that there are; ``prefix`` and ``count``
        of the ids to draw. The rest is not looked into.
    devices : sequence of str, optional
        Ids of the caller's choice.
    registered : set of str
        Devices that have certificates.

    Raises
    ------
    InputError
        When an id was given before (with ``renew``: was not), or what was begun there is something else.
    ParameterError, CorruptError, NotWritableError, DiskFullError
    """
    earlier = read_batches(folder)
    begun = next((b for b in earlier if not b.finished and b.request["out"] == request["out"]), None)
    if begun is not None:
        if begun.request != request or (devices is not None and tuple(devices) != begun.devices):
            raise InputError(
                f"{request['out']} was begun with other options and not finished; call with the same ones "
                "to finish it, or name another place"
            )
        return begun, True
    given = registered.union(*(batch.devices for batch in earlier))
    if devices is None:
        devices = _fresh(str(request["prefix"]), int(str(request["count"])), given)
    else:
        _require(devices, given, known=bool(request["renew"]))
        require_free(folder, devices)
    batch = Batch(
        name=f"{now:%Y%m%d}-{_drawn(8)}",
        request=request,
        devices=tuple(devices),
        made_at=now.isoformat(timespec="seconds"),
    )
    make_directory(folder)
    folder.chmod(0o700)
    write_batch(folder, batch)
    return batch, False


def require_free(folder: Path, devices: Sequence[str]) -> None:
    """Check that no batch that is not finished has these ids.

    Raises
    ------
    InputError
        When one has: its run, once gone on with, would give a second device the same id.
    """
    for batch in read_batches(folder):
        if not batch.finished and (taken := set(batch.devices) & set(devices)):
            raise InputError(
                f"{min(taken)} is reserved for {batch.request['out']}, which was begun and not finished; "
                "finish that with the same call first"
            )


def _require(devices: Sequence[str], given: set[str], *, known: bool) -> None:
    for device in devices:
        checked_id(device, "the device id")
    if known and (unknown := [each for each in devices if each not in given]):
        raise InputError(f"there is no device {unknown[0]}; nothing was made")
    if not known and (taken := [each for each in devices if each in given]):
        raise InputError(
            f"the id {taken[0]} was given before; choose another one, or give --renew for new certificates "
            "of devices that there are"
        )


def _fresh(prefix: str, count: int, given: set[str]) -> list[str]:
    while True:  # a second turn is as probable as a lottery's first prize
        drawn = drawn_ids(prefix, count)
        if given.isdisjoint(drawn):
            return drawn


def _read(path: Path) -> Batch:
    try:
        content = json.loads(read_file(path))
        return Batch(**(content | {"devices": tuple(content["devices"])}))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} cannot be read; restore it from a backup") from error
