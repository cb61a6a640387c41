"""What a fleet's databases prove once all of its processes have ended.

Reads with plain SQL, not with the code under test. What the programs do not keep is kept for
them by triggers, which `place_witnesses` puts into the databases beforehand, so that they are written in
the very transactions that they tell of: every update that a device makes, every receipt that it settles
and every head whose table it takes; and every version's table.
"""

import hashlib
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import ProtocolError
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import MAX_TRANSFER_BYTES, Head, Update, decode
from broker.protocol.versions import table_bytes
from tests.integration.processes import Directories
from trainer.aggregation import Accumulator, FedBuff

_DEVICE_WITNESS = """
CREATE TABLE witness_made (seq INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TRIGGER witness_made AFTER INSERT ON outbox BEGIN
  INSERT INTO witness_made VALUES (new.seq, new.payload); END;
CREATE TABLE witness_settled (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, verdict TEXT);
CREATE TRIGGER witness_settled AFTER DELETE ON outbox BEGIN
  INSERT INTO witness_settled (seq) VALUES (old.seq); END;
CREATE TRIGGER witness_first_receipt AFTER INSERT ON receipts BEGIN
  UPDATE witness_settled SET verdict = new.verdict WHERE id = (SELECT max(id) FROM witness_settled); END;
CREATE TRIGGER witness_receipt AFTER UPDATE ON receipts BEGIN
  UPDATE witness_settled SET verdict = new.verdict WHERE id = (SELECT max(id) FROM witness_settled); END;
CREATE TABLE witness_heads (head BLOB NOT NULL);
CREATE TRIGGER witness_first_head AFTER INSERT ON model BEGIN
  INSERT INTO witness_heads VALUES (new.head); END;
CREATE TRIGGER witness_head AFTER UPDATE ON model BEGIN
  INSERT INTO witness_heads VALUES (new.head); END;
CREATE TRIGGER witness_first_held AFTER INSERT ON facts WHEN new.name = 'held_head' BEGIN
  INSERT INTO witness_heads VALUES (new.value); END;
CREATE TRIGGER witness_held AFTER UPDATE ON facts WHEN new.name = 'held_head' BEGIN
  INSERT INTO witness_heads VALUES (new.value); END;
"""
_AGGREGATOR_WITNESS = """
CREATE TABLE witness_tables (version INTEGER NOT NULL, item_table BLOB NOT NULL);
INSERT INTO witness_tables SELECT version, item_table FROM versions;
CREATE TRIGGER witness_tables AFTER INSERT ON versions BEGIN
  INSERT INTO witness_tables VALUES (new.version, new.item_table); END;
"""
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Finding:
    """One promise, the figures that bear on it, and what contradicts it."""

    promise: str
    figures: str
    broken: Sequence[str]

    def __str__(self) -> str:
        lines = [f"{'FAIL' if self.broken else 'PASS'}  {self.promise}: {self.figures}"]
        lines += [f"        {sentence}" for sentence in self.broken[:10]]
        if len(self.broken) > 10:
            lines.append(f"        and {len(self.broken) - 10} more")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of ``edge-client record``: `code` is what it returned, -9 where it was killed."""

    device: str
    at: int
    items: tuple[str, ...]
    code: int
    stderr: str = ""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database of the fleet."""
    with closing(sqlite3.connect(path, timeout=30.0, isolation_level=None)) as connection:
        yield connection


def place_witnesses(directories: Directories) -> None:
    """Put the triggers into all databases."""
    with opened(directories.aggregator_database) as database:
        database.executescript(_AGGREGATOR_WITNESS)
    for name in directories.settings.names:
        with opened(directories.device_database(name)) as database:
            database.executescript(_DEVICE_WITNESS)


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What one device's database holds.

    Attributes
    ----------
    made : list of (int, int, bytes)
        Updates by incarnation, which may have been drawn anew, and number.
    head, item_table : Head or None, bytes
        The table that is stored.
    held : Head or None
        That of the newest table, which may have been in memory only.
    heads : list of Head
        All that ever were one of the two.
    """

    interactions: list[tuple[float, str]]
    incarnation: int
    last_seq: int
    outbox: list[int]
    made: list[tuple[int, int, bytes]]
    settled: list[tuple[int, str]]
    receipts: dict[str, int]
    head: Head | None
    item_table: bytes
    held: Head | None
    heads: list[Head]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the aggregator's journal."""

    device: str
    incarnation: int
    seq: int
    verdict: str
    staleness: int
    version: int | None


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version as the aggregator's database has it; `item_table` as it was when it was made."""

    number: int
    sha256: bytes
    updates: int
    item_table: bytes


@dataclass(kw_only=True)
class Evidence:
    """Everything that the databases hold, read once."""

    devices: dict[str, DeviceFacts] = field(default_factory=dict)
    journal: list[Row]
    versions: list[Version]
    newest_table: bytes
    dim: int

    @classmethod
    def of(cls, directories: Directories) -> "Evidence":
        """Read a fleet's databases."""
        with opened(directories.aggregator_database) as database:
            journal = [
                Row(device=d, incarnation=int(i), seq=s, verdict=v, staleness=late, version=version)
                for d, i, s, v, late, version in database.execute(
                    "SELECT device, incarnation, seq, verdict, staleness, version FROM journal ORDER BY id"
                )
            ]
            versions = [
                Version(number=number, sha256=digest, updates=updates, item_table=table)
                for number, digest, updates, table in database.execute(
                    "SELECT v.version, v.sha256, v.updates, w.item_table FROM versions v "
                    "JOIN witness_tables w ON w.version = v.version ORDER BY v.version"
                )
            ]
            [(newest,)] = database.execute(
                "SELECT item_table FROM versions ORDER BY version DESC LIMIT 1"
            ).fetchall()
            [(dim,)] = database.execute("SELECT value FROM facts WHERE name = 'dim'").fetchall()
        devices = {
            name: device_facts(directories.device_database(name)) for name in directories.settings.names
        }
        return cls(devices=devices, journal=journal, versions=versions, newest_table=newest, dim=dim)


def device_facts(path: Path) -> DeviceFacts:
    """Read a device's database."""
    with opened(path) as database:

        def rows(query: str) -> list[Any]:
            return database.execute(query).fetchall()

        facts = dict(rows("SELECT name, value FROM facts"))
        model = rows("SELECT head, item_table FROM model")
        held = facts.get("held_head", model[0][0] if model else None)
        return DeviceFacts(
            interactions=rows("SELECT at, item FROM interactions ORDER BY id"),
            incarnation=int(facts["incarnation"]),
            last_seq=int(facts.get("seq", 0)),
            outbox=[seq for (seq,) in rows("SELECT seq FROM outbox")],
            made=[
                (_incarnation(payload), seq, payload)
                for seq, payload in rows("SELECT seq, payload FROM witness_made ORDER BY rowid")
            ],
            settled=rows("SELECT seq, verdict FROM witness_settled ORDER BY id"),
            receipts=dict(rows("SELECT verdict, count FROM receipts")),
            head=decode(model[0][0], Head) if model else None,
            item_table=model[0][1] if model else b"",
            held=None if held is None else decode(held, Head),
            heads=[decode(head, Head) for (head,) in rows("SELECT head FROM witness_heads")],
        )


def _incarnation(payload: bytes) -> int:
    """Give the one that an update bears; -1 where it is no update."""
    try:
        return decode(payload, Update, max_bytes=MAX_TRANSFER_BYTES).incarnation
    except ProtocolError:
        return -1


def findings(directories: Directories, calls: Sequence[Call], ended_alone: Sequence[str]) -> list[Finding]:
    """Hold a fleet that has come to rest and was stopped against all promises."""
    evidence = Evidence.of(directories)
    return [
        kept_interactions(evidence.devices, calls),
        _journal(evidence),
        _receipts(evidence),
        _rounds(evidence),
        _tables(evidence),
        _same_version(evidence),
        _held_tables(evidence),
        _conduct(directories, evidence, ended_alone),
    ]


def kept_interactions(devices: Mapping[str, DeviceFacts], calls: Sequence[Call]) -> Finding:
    """Hold what was recorded against what is there."""
    broken: list[str] = []
    partial = Counter[str]()
    for name, device in devices.items():
        there: dict[float, list[str]] = {}
        for at, item in device.interactions:
            there.setdefault(at, []).append(item)
        for call in (call for call in calls if call.device == name):
            found = there.pop(float(call.at), [])
            if found != list(call.items) and (call.code == 0 or found):
                broken.append(f"{call} left {found} on {name}")
            if call.code not in (0, -9):
                broken.append(f"record on {name} failed with {call.code}: {call.stderr.strip()}")
            if call.code:
                partial["there" if found else "not there"] += 1
        broken += [f"nobody recorded {items} on {name}" for items in there.values()]
    done = sum(call.code == 0 for call in calls)
    total = sum(len(device.interactions) for device in devices.values())
    return Finding(
        "1. recorded interactions are kept, each call whole",
        f"{done} calls returned 0; {len(calls) - done} were killed ({partial['there']} are there, "
        f"{partial['not there']} not); {total} interactions",
        broken,
    )


def _journal(evidence: Evidence) -> Finding:
    broken: list[str] = []
    figures: list[str] = []
    rows = Counter((row.device, row.incarnation, row.seq) for row in evidence.journal)
    broken += [f"{key} has {count} rows" for key, count in rows.items() if count > 1]
    for name, device in evidence.devices.items():
        numbers = [seq for _, seq, _ in device.made]
        if numbers != list(range(1, device.last_seq + 1)):
            broken.append(f"{name} made {numbers}, its newest is {device.last_seq}")
        expected = {(name, incarnation, seq) for incarnation, seq, _ in device.made}
        found = {key for key in rows if key[0] == name}
        broken += [f"{key} is lost" for key in sorted(expected - found)]
        broken += [f"nobody made {key}" for key in sorted(found - expected)]
        kinds = Counter(
            row.verdict if row.verdict != "accepted" else "pending" if row.version is None else "counted"
            for row in evidence.journal
            if row.device == name
        )
        if kinds["pending"]:
            broken.append(f"{kinds['pending']} updates of {name} are accepted and not counted")
        if device.last_seq != kinds["counted"] + kinds["stale"] + kinds["rejected"]:
            broken.append(f"{name} made {device.last_seq}, the journal has {dict(kinds)}")
        figures.append(
            f"{name} made {device.last_seq} = {kinds['counted']} counted + {kinds['stale']} stale + "
            f"{kinds['rejected']} rejected, {kinds['pending']} pending"
        )
    strangers = {row.device for row in evidence.journal} - evidence.devices.keys()
    broken += [f"the journal knows a device {name}" for name in sorted(strangers)]
    return Finding("2. every update made has exactly one row in the journal", "; ".join(figures), broken)


def _receipts(evidence: Evidence) -> Finding:
    broken: list[str] = []
    verdicts = Counter[str]()
    journal = {(row.device, row.seq): row for row in evidence.journal}
    for name, device in evidence.devices.items():
        verdicts.update(verdict for _, verdict in device.settled)
        if [seq for seq, _ in device.settled] != list(range(1, device.last_seq + 1)):
            broken.append(f"{name} settled {[seq for seq, _ in device.settled]} of {device.last_seq} updates")
        if Counter(verdict for _, verdict in device.settled) != Counter(device.receipts):
            broken.append(f"{name} settled {device.settled}, but tells {device.receipts}")
        for seq, verdict in device.settled:
            row = journal.get((name, seq))
            if row is None:
                broken.append(f"{name} was answered {verdict} for update {seq}, which the journal lacks")
            elif verdict == "accepted" and (row.verdict != "accepted" or row.version is None):
                broken.append(f"{name} was told that update {seq} is accepted, the journal has {row}")
            elif verdict not in ("duplicate", row.verdict):
                broken.append(f"{name} was told {verdict} for update {seq}, the journal has {row}")
    return Finding(
        "3a. every update answered `accepted` is counted in a version",
        ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())),
        broken,
    )


def _rounds(evidence: Evidence) -> Finding:
    broken: list[str] = []
    numbers = [version.number for version in evidence.versions]
    if numbers != list(range(len(numbers))):
        broken.append(f"the versions are {numbers}")
    counted = Counter(row.version for row in evidence.journal if row.version is not None)
    broken += [
        f"version {each.number} says {each.updates} updates, the journal {counted[each.number]}"
        for each in evidence.versions
        if each.updates != counted[each.number]
    ]
    claimed = sum(version.updates for version in evidence.versions)
    if claimed != sum(counted.values()):
        broken.append(f"all versions say {claimed} updates, the journal {sum(counted.values())}")
    return Finding(
        "3b. versions count what the journal has",
        f"{claimed} updates in {len(numbers) - 1} versions, {sum(counted.values())} rows counted",
        broken,
    )


def _tables(evidence: Evidence) -> Finding:
    """Add every table up anew, from what the devices made: it tells of an update added twice."""
    broken: list[str] = []
    strategy = FedBuff()
    made = {
        (name, incarnation, seq): payload
        for name, device in evidence.devices.items()
        for incarnation, seq, payload in device.made
    }
    for before, version in zip(evidence.versions, evidence.versions[1:], strict=False):
        table = np.frombuffer(before.item_table, dtype="<f4").reshape(-1, evidence.dim)
        sums = Accumulator(*table.shape)
        for row in evidence.journal:
            payload = made.get((row.device, row.incarnation, row.seq))
            if row.version != version.number or payload is None:
                continue
            update = decode(payload, Update, max_bytes=MAX_TRANSFER_BYTES)
            change = ENCODINGS[update.encoding].decode(update.body, *table.shape)
            sums.add(change.rows, change.change, strategy.weight(row.staleness))
        expected = table_bytes(strategy.change(sums, len(evidence.devices)) + table)
        if expected != version.item_table:
            broken.append(f"version {version.number} is not version {before.number} plus its updates")
    return Finding(
        "3c. every version is the one before plus its updates, to the last bit",
        f"{len(evidence.versions) - 1} tables added up anew",
        broken,
    )


def _same_version(evidence: Evidence) -> Finding:
    broken: list[str] = []
    newest = evidence.versions[-1]
    if hashlib.sha256(evidence.newest_table).digest() != newest.sha256:
        broken.append("the aggregator's newest table does not have its SHA-256")
    for name, device in evidence.devices.items():
        if device.head is None or device.held is None:
            broken.append(f"{name} has no table")
            continue
        if (device.held.version, device.held.sha256) != (newest.number, newest.sha256):
            broken.append(f"{name} has version {device.held.version}, SHA-256 {device.held.sha256.hex()}")
        if hashlib.sha256(device.item_table).digest() != device.head.sha256:
            broken.append(f"the table on {name} does not have its SHA-256")
    return Finding(
        "4a. all end on the same version with the same SHA-256",
        f"version {newest.number}, {newest.sha256.hex()[:16]}..., on the aggregator and "
        f"{len(evidence.devices)} devices",
        broken,
    )


def _held_tables(evidence: Evidence) -> Finding:
    """Look at all tables that devices ever had: none may come of a round that was never stored."""
    versions = {(version.number, version.sha256) for version in evidence.versions}
    broken = [
        f"{name} had a version {head.version} with SHA-256 {head.sha256.hex()}, which there never was"
        for name, device in evidence.devices.items()
        for head in device.heads
        if (head.version, head.sha256) not in versions
    ]
    held = sum(len(device.heads) for device in evidence.devices.values())
    return Finding("4b. devices only ever held tables of stored versions", f"{held} tables held", broken)


def _conduct(directories: Directories, evidence: Evidence, ended_alone: Sequence[str]) -> Finding:
    broken = list(ended_alone)
    logs = sorted(directories.logs.iterdir())
    for log in logs:
        count = log.read_text(errors="replace").count(_TRACEBACK)
        if count:
            broken.append(f"{log} has {count} tracebacks")
    waiting = {name: device.outbox for name, device in evidence.devices.items() if device.outbox}
    if waiting:
        broken.append(f"updates are left in outboxes: {waiting}")
    return Finding(
        "5. no traceback, every process up again, outboxes empty",
        f"{len(logs)} logs without a traceback, {len(ended_alone)} processes ended by themselves",
        broken,
    )


def conclude(work: Path, *, holds: bool, keep: bool) -> int:
    """Remove what a good run leaves, unless it is to be kept, or say where it is; give the exit code."""
    if holds and not keep:
        shutil.rmtree(work)
    else:
        sys.stdout.write(f"directories and logs: {work}\n")
    return 0 if holds else 1
