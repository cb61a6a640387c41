"""``edge-client export``, ``forget`` and ``reset``: what they say, and ask before something is lost."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from broker.exit_codes import ExitCode
from broker.storage import exclusive
from edge.config import DATABASE_NAME, DeviceConfig, initialise
from edge.database import MIGRATIONS
from edge.retention import Retention
from edge.scheduler import Progress
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state, a_table
from tests.edge.commands import Call, assert_refused
from tests.edge.disks import fill_disk
from tests.edge.old_database import dump
from tests.edge.running import looking_at

YEAR_S = 365 * 86_400.0


def a_trained_device(path: Path) -> Path:
    """Make one with two interactions, and an update that was sent."""
    initialise(path, DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://ann:pass@10.0.0.2"))
    with looking_at(path) as store:
        store.replace_model(a_head(7), a_table(), ITEM_KEYS)
        store.record([("bread", 1000.0), ("unheard of", 1_700_000_000.5)])
        store.save_pass(a_personal_state(), Progress(trained_revision=2), (1, b"x"))
        store.settle(1, "accepted")
        store.save_pass(a_personal_state(), Progress(trained_revision=2), (2, b"an update"))
        store.sending(2)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device that has learnt something."""
    return a_trained_device(tmp_path / "me")


# -- export ----------------------------------------------------------------------------------------


def test_export_prints_one_document(call: Call, directory: Path) -> None:
    """With everything that docs/device-data.md says, and no password."""
    found = call("export", "--dir", directory)
    assert (found.code, found.err) == (ExitCode.OK, "")
    assert "pass" not in found.out
    content = json.loads(found.out)
    assert (content["format"], content["format_version"]) == ("pfedrec-device", 1)
    assert content["settings"]["broker"] == "mqtt://ann@10.0.0.2:1883"
    assert content["settings"]["device_id"] == "pi-1"
    assert content["interactions"] == [
        {"item": "bread", "at": 1000.0, "time": "1970-01-01T00:16:40+00:00"},
        {"item": "unheard of", "at": 1_700_000_000.5, "time": "2023-11-14T22:13:20+00:00"},
    ]
    state = a_personal_state()
    assert content["personal"]["score_function"]["w"] == [float(each) for each in state.score_function.w]
    assert [row["item"] for row in content["personal"]["own_view"]] == ["bread", "egg"]
    assert content["personal"]["own_view"][1]["values"] == [float(each) for each in state.own_values[1]]
    assert content["model"] == {"version": 7, "sha256": a_head(7).sha256.hex(), "items": 6}
    assert content["outbox"] == {"seq": 2, "payload": "YW4gdXBkYXRl"}
    assert content["receipts"] == {"accepted": 1}
    assert (content["updates_made"], content["withdrawn"]) == (2, 0)


def test_export_of_a_new_device_is_whole_too(call: Call, tmp_path: Path) -> None:
    """With nothing in it."""
    path = tmp_path / "new"
    initialise(path, DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://10.0.0.2"))
    content = json.loads(call("export", "--dir", path).out)
    assert (content["interactions"], content["receipts"]) == ([], {})
    assert (content["personal"], content["model"], content["outbox"]) == (None, None, None)


def test_export_to_a_place_that_cannot_be_written_says_so(call: Call, directory: Path) -> None:
    """And leaves no half file."""
    out = directory / "nowhere" / "data.json"
    assert_refused(call("export", "--dir", directory, "--out", out), ExitCode.NOT_WRITABLE, str(out))
    assert not out.parent.exists()


# -- forget ----------------------------------------------------------------------------------------


def test_forget_says_what_it_cannot_take_back(call: Call, directory: Path) -> None:
    """Each of its sentences is true of this device."""
    found = call("forget", "--dir", directory, "bread")
    assert found.err == (
        "forgot 1 interaction; 1 left\n"
        "the personal model is gone; the next training makes it anew from what is left\n"
        "update 2 was taken back; it was sent before, so the aggregator may have received it and then "
        "counts it\n"
        "what the fleet received before stays part of the shared table\n"
    )


def test_forget_gives_json(call: Call, directory: Path) -> None:
    """The same, for programs; with what may have a copy."""
    (directory / f"{DATABASE_NAME}.damaged-20260101T000000Z").write_bytes(b"old")
    found = call("forget", "--dir", directory, "bread", "--json")
    assert json.loads(found.out) == {
        "interactions": 1,
        "left": 1,
        "personal": True,
        "withdrawn": 2,
        "may_have_left": True,
        "received": True,
        "damaged_files": [f"{DATABASE_NAME}.damaged-20260101T000000Z"],
    }


def test_forget_names_the_files_that_may_have_it_too(call: Call, directory: Path) -> None:
    """It cannot take one item out of them; everything takes them away."""
    aside = directory / f"{DATABASE_NAME}.damaged-20260101T000000Z"
    aside.write_bytes(b"old")
    assert f"remove them yourself: {aside.name}" in call("forget", "--dir", directory, "bread").err
    assert aside.exists()
    assert f"removed {aside.name}" in call("forget", "--dir", directory, "--everything", "--yes").err
    assert not aside.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("give ITEMs, --from, --to",)),
        (("bread", "--everything"), ("or --everything alone",)),
        (("--everything",), ("there is nobody to ask; add --yes",)),
        (("--from", "yesterday"), ("'yesterday' is no time",)),
    ],
)
def test_forget_that_is_wrong_changes_nothing(
    call: Call, directory: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """The sentence says what is missing."""
    before = dump(directory / DATABASE_NAME)
    assert_refused(call("forget", "--dir", directory, *arguments), ExitCode.USAGE, *words)
    assert dump(directory / DATABASE_NAME) == before


@pytest.mark.root
def test_forget_on_a_full_disk_can_be_called_again(call: Call, small_disk: Path) -> None:
    """It says that there is no room; then nothing of it is left."""
    directory = a_trained_device(small_disk / "me")
    filler = fill_disk(small_disk)
    assert_refused(call("forget", "--dir", directory, "bread"), ExitCode.DISK_FULL, "no space is left")
    filler.unlink()
    assert call("forget", "--dir", directory, "bread").code == ExitCode.OK
    with looking_at(directory) as store:
        assert [item for item, _ in store.interactions()] == ["unheard of"]


def test_forget_while_somebody_reads_says_so_and_can_be_called_again(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log cannot be emptied then; what is forgotten stays so."""
    monkeypatch.setattr("broker.storage._BUSY_TIMEOUT_S", 0.05)
    with closing(sqlite3.connect(directory / DATABASE_NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM interactions").fetchall()
        found = call("forget", "--dir", directory, "bread")
        assert found.code == ExitCode.IN_USE
    assert call("forget", "--dir", directory, "bread").err == (
        "forgot 0 interactions; 1 left\nwhat the fleet received before stays part of the shared table\n"
    )


# -- reset -----------------------------------------------------------------------------------------


def test_reset_asks_unless_told_not_to(call: Call, directory: Path) -> None:
    """Without a terminal there is nobody to ask."""
    before = dump(directory / DATABASE_NAME)
    assert_refused(call("reset", "--dir", directory), ExitCode.USAGE, "there is nobody to ask; add --yes")
    assert dump(directory / DATABASE_NAME) == before


def test_reset_beside_a_running_start_is_refused(call: Call, directory: Path) -> None:
    """The sentence names the directory."""
    before = dump(directory / DATABASE_NAME)
    with exclusive(directory):
        found = call("reset", "--dir", directory, "--yes")
    assert_refused(found, ExitCode.IN_USE, f"{directory} is in use by another process")
    assert dump(directory / DATABASE_NAME) == before


def test_reset_of_a_later_release_is_refused(call: Call, directory: Path) -> None:
    """It would not know what to keep."""
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    found = call("reset", "--dir", directory, "--yes")
    assert_refused(found, ExitCode.NEWER_VERSION, "nothing was changed")


def test_reset_of_a_damaged_device_makes_a_fresh_one(call: Call, directory: Path) -> None:
    """With what can be read of its interactions, if wanted."""
    path = directory / DATABASE_NAME
    for options, kept in ((("--keep-interactions",), 2), ((), 0)):
        content = path.read_bytes()
        path.write_bytes(bytes(100) + content[100:])
        found = call("reset", "--dir", directory, "--yes", *options)
        assert found.code == ExitCode.OK
        assert "a new database was made" in found.err
        with looking_at(directory) as store:
            assert store.interacted().total == kept
            assert store.model_head() is None
        aside = list(directory.glob(f"{DATABASE_NAME}.damaged-*"))
        assert bool(aside) == bool(kept)


# -- trouble that any command may meet -------------------------------------------------------------


def test_record_beyond_a_limit_on_file_sizes_says_so_and_records_nothing(directory: Path) -> None:
    """``ulimit -f``, a quota: the operating system refuses to let the file grow."""
    before = dump(directory / DATABASE_NAME)
    size = (directory / DATABASE_NAME).stat().st_size
    found = subprocess.run(
        [sys.executable, "-c", "from edge.cli import main; main()", "record", "--dir", directory, "fig"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert size > 1000
    assert found.returncode == ExitCode.NOT_WRITABLE, found.stderr
    assert found.stderr.count("\n") == 1
    assert str(directory) in found.stderr
    assert dump(directory / DATABASE_NAME) == before


def test_clock_that_goes_back_a_year_costs_nothing(call: Call, directory: Path) -> None:
    """Nor one that was a year ahead for a moment: interactions are kept from the newest one back."""
    now = 1_700_000_001.0
    with looking_at(directory) as store:
        store.record([("egg", now)])
        assert store.compact(Retention(days=400.0), now - YEAR_S) == 1, "that of 1970"
        store.record([("fig", now - YEAR_S)])
        for clock in (now - YEAR_S, now, now + YEAR_S, now + 100 * YEAR_S):
            assert store.compact(Retention(days=400.0), clock) == 0
        assert [item for item, _ in store.interactions()] == ["fig", "unheard of", "egg"]
        assert store.interacted().revision == 4
    assert call("record", "--dir", directory, "date", "--at", "1000").code == ExitCode.OK
