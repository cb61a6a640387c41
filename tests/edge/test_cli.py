"""``edge-client``: what every command prints; a wrong call leaves a sentence, a code, and no change."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import broker.storage
from broker.exit_codes import ExitCode
from broker.storage import exclusive
from edge.cli import cli as commands
from edge.config import CONFIG_NAME, DATABASE_NAME, DeviceConfig, initialise, open_store
from edge.database import MIGRATIONS
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.brokers import HOST
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state
from tests.edge.commands import Call, Outcome, assert_refused
from tests.edge.disks import fill_disk, make_read_only
from tests.edge.old_database import dump
from tests.edge.running import looking_at, wait_until
from trainer.params import sigmoid

TABLE = np.array([[3, 0], [0, 1], [2, 0], [0, 2], [1, 0], [0, 3]], dtype=np.float32)
COMMANDS = sorted(commands.commands)
RUNTIMES = ("tflite_runtime", "ai_edge_litert")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device that was set up, and no more."""
    path = tmp_path / "me"
    initialise(path, DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://10.0.0.2", scorer="numpy"))
    return path


@pytest.fixture
def trained(directory: Path) -> Path:
    """Give a device with a table and two interactions."""
    with closing(open_store(directory)) as store:
        store.replace_model(a_head(7, table=TABLE), TABLE, ITEM_KEYS)
        store.record([("bread", 1000.0), ("unheard of", 1001.0)])
    return directory


def interactions_in(directory: Path) -> list[tuple[str, float]]:
    """Give what was recorded."""
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        return connection.execute("SELECT item, at FROM interactions ORDER BY id").fetchall()


# -- every command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(call: Call, command: str) -> None:
    """One that can be typed as it stands."""
    found = call(command, "--help")
    assert found.code == ExitCode.OK
    assert f"  edge-client {command} --dir me" in found.out


def test_help_names_all_commands(call: Call) -> None:
    """With the shortest option, too."""
    found = call("-h")
    assert found.code == ExitCode.OK
    assert all(command in found.out for command in COMMANDS)


def test_version_is_that_of_the_package(call: Call) -> None:
    """As pip knows it."""
    assert call("--version").out.strip().endswith(package_version("pfedrec-edge"))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_without_directory_is_a_usage_error(call: Call, command: str) -> None:
    """There is no default that could be somebody else's."""
    assert_refused(call(command), ExitCode.USAGE, "Missing option", "--dir")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_in_a_file_is_a_usage_error(call: Call, tmp_path: Path, command: str) -> None:
    """A directory is wanted."""
    (tmp_path / "file").touch()
    assert_refused(call(command, "--dir", tmp_path / "file"), ExitCode.USAGE, "is a file")


def test_unknown_command_is_a_usage_error(call: Call) -> None:
    """And unknown options are, too."""
    assert_refused(call("dance"), ExitCode.USAGE, "No such command")
    assert_refused(call("status", "--loud"), ExitCode.USAGE, "No such option")


USES: dict[str, tuple[str, ...]] = {
    "export": (),
    "forget": ("bread",),
    "record": ("bread",),
    "recommend": (),
    "start": (),
    "status": (),
}


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest, call: Call) -> Callable[[Path], Outcome]:
    """Give each command that needs a directory that was set up."""
    command: str = request.param
    return lambda directory: call(command, "--dir", directory, *USES[command])


@pytest.fixture(params=sorted(USES.keys() - {"start"}))
def look(request: pytest.FixtureRequest, call: Call) -> Callable[[Path], Outcome]:
    """Give each command that needs a sound database; ``start`` makes a new one of what is left."""
    command: str = request.param
    return lambda directory: call(command, "--dir", directory, *USES[command])


@pytest.fixture(params=sorted(USES.keys() - {"record"}))
def configured(request: pytest.FixtureRequest, call: Call) -> Callable[[Path], Outcome]:
    """Give each command that needs the settings."""
    command: str = request.param
    return lambda directory: call(command, "--dir", directory, *USES[command])


def test_directory_that_was_not_set_up_says_how(use: Callable[[Path], Outcome], tmp_path: Path) -> None:
    """And is left as it is, whether it exists or not."""
    for path in (tmp_path, tmp_path / "nowhere"):
        found = use(path)
        assert_refused(found, ExitCode.NOT_INITIALISED, f"edge-client init --dir {path} --device-id ID")
    assert list(tmp_path.iterdir()) == []


def test_directory_without_its_database_says_so(look: Callable[[Path], Outcome], directory: Path) -> None:
    """A new one would be another device; only ``start`` makes it."""
    (directory / DATABASE_NAME).unlink()
    assert_refused(look(directory), ExitCode.CORRUPT, f"{DATABASE_NAME} is missing or empty")
    assert not (directory / DATABASE_NAME).exists()


def test_directory_of_a_later_release_is_left_untouched(
    use: Callable[[Path], Outcome], directory: Path
) -> None:
    """The sentence says which formats are known."""
    path = directory / DATABASE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 3}")
    before = path.read_bytes()
    assert_refused(use(directory), ExitCode.NEWER_VERSION, "later release", "nothing was changed")
    assert path.read_bytes() == before


def test_directory_that_is_damaged_says_so(look: Callable[[Path], Outcome], directory: Path) -> None:
    """A file that is no database any more."""
    path = directory / DATABASE_NAME
    path.write_bytes(b"oops" * 5000)
    assert_refused(look(directory), ExitCode.CORRUPT, str(path), "is damaged")
    assert path.read_bytes() == b"oops" * 5000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[", ("is not valid TOML",)),
        (b'fleet = "a"\n', ("the device id ''",)),
        (b'colour = "red"\n', ("unknown entry 'colour'",)),
        (b"fleet = 3\n", ("fleet must be text, not 3",)),
    ],
)
def test_configuration_that_is_broken_names_its_file(
    configured: Callable[[Path], Outcome], directory: Path, content: bytes, words: tuple[str, ...]
) -> None:
    """And what is wrong with it."""
    (directory / CONFIG_NAME).write_bytes(content)
    assert_refused(configured(directory), ExitCode.CONFIG, str(directory / CONFIG_NAME), *words)


def test_record_needs_no_settings(call: Call, directory: Path) -> None:
    """What is wrong in them must not cost an interaction."""
    (directory / CONFIG_NAME).write_bytes(b"[")
    assert call("record", "--dir", directory, "apple").code == ExitCode.OK
    assert [item for item, _ in interactions_in(directory)] == ["apple"]


def test_environment_that_is_wrong_is_refused(
    configured: Callable[[Path], Outcome], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable is as good as an entry, and as bad."""
    monkeypatch.setenv("PFEDREC_SCORER", "abacus")
    assert_refused(
        configured(directory), ExitCode.CONFIG, "scorer is 'abacus'; it must be one of auto, tflite, numpy"
    )


@pytest.mark.root
def test_directory_that_cannot_be_written_says_so(use: Callable[[Path], Outcome], small_disk: Path) -> None:
    """For example on a card that the system has set to read-only."""
    initialise(small_disk / "me", DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://10.0.0.2"))
    make_read_only(small_disk)
    assert_refused(use(small_disk / "me"), ExitCode.NOT_WRITABLE, str(small_disk / "me"))


# -- init ------------------------------------------------------------------------------------------

INIT = ("--device-id", "pi-1", "--fleet", "shop", "--broker", "mqtt://10.0.0.2")


def test_init_says_what_is_next(call: Call, tmp_path: Path) -> None:
    """Where the settings are, and how to start."""
    path = tmp_path / "new" / "me"
    found = call("init", "--dir", path, *INIT, "--scorer", "numpy")
    assert (found.code, found.out) == (ExitCode.OK, "")
    assert found.err == (
        f"{path} is set up for device pi-1 of fleet shop\n"
        f"settings: {path / CONFIG_NAME}; run it with: edge-client start --dir {path}\n"
    )
    facts = json.loads(call("status", "--dir", path, "--json").out)
    assert (facts["device_id"], facts["scorer"], facts["version"]) == ("pi-1", "numpy", None)


def test_init_again_changes_nothing(call: Call, trained: Path) -> None:
    """Interactions are not lost by a slip of the hand."""
    before = dump(trained / DATABASE_NAME), (trained / CONFIG_NAME).read_bytes()
    assert_refused(call("init", "--dir", trained, *INIT), ExitCode.ALREADY_INITIALISED, "was set up before")
    assert (dump(trained / DATABASE_NAME), (trained / CONFIG_NAME).read_bytes()) == before


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--device-id", "living/room", "the device id 'living/room' is not allowed"),
        ("--device-id", "", "the device id ''"),
        ("--fleet", "+", "the fleet name '+' is not allowed"),
        ("--broker", "10.0.0.2:1883", "is no broker address; write mqtt://HOST:PORT"),
        ("--broker", "mqtt://ann:secret@:1", "is no broker address"),
        ("--scorer", "abacus", "must be one of auto, tflite, numpy"),
    ],
)
def test_init_with_a_wrong_value_makes_nothing(
    call: Call, tmp_path: Path, option: str, value: str, words: str
) -> None:
    """The sentence says what would be right; a password is not repeated."""
    arguments = dict(zip(INIT[::2], INIT[1::2], strict=True)) | {option: value}
    found = call("init", "--dir", tmp_path / "me", *(part for pair in arguments.items() for part in pair))
    assert_refused(found, ExitCode.USAGE, words)
    assert "secret" not in found.err
    assert list(tmp_path.iterdir()) == []


def test_init_without_a_needed_option_makes_nothing(call: Call, tmp_path: Path) -> None:
    """Each of the three is named."""
    for index in (0, 2, 4):
        rest = INIT[:index] + INIT[index + 2 :]
        assert_refused(call("init", "--dir", tmp_path / "me", *rest), ExitCode.USAGE, INIT[index])
    assert list(tmp_path.iterdir()) == []


def test_init_where_nothing_can_be_written_says_so(call: Call, tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "file").touch()
    found = call("init", "--dir", tmp_path / "file" / "me", *INIT)
    assert_refused(found, ExitCode.NOT_WRITABLE, str(tmp_path / "file" / "me"), "choose another directory")


# -- record ----------------------------------------------------------------------------------------


def test_record_keeps_items_with_their_time(call: Call, directory: Path) -> None:
    """Now, when none is given; several at once; any item while there is no catalogue."""
    found = call("record", "--dir", directory, "bread", "egg", "--at", "2026-05-01T12:30:00")
    assert (found.code, found.out) == (ExitCode.OK, "")
    assert found.err == (
        "recorded 2 interactions\n"
        "the catalogue has not arrived yet; items that it does not have will wait until it has them\n"
    )
    assert interactions_in(directory) == [("bread", 1777638600.0), ("egg", 1777638600.0)]
    call("record", "--dir", directory, "fig")
    assert interactions_in(directory)[2][1] > 1777638600.0 - 10 * 365 * 86400


def test_record_with_catalogue_says_only_what_it_did(call: Call, trained: Path) -> None:
    """One interaction, in the singular."""
    assert call("record", "--dir", trained, "egg").err == "recorded 1 interaction\n"


def test_record_takes_a_file(call: Call, trained: Path, tmp_path: Path) -> None:
    """With times and without."""
    file = tmp_path / "events.csv"
    file.write_text("item,time\negg,5\nfig,1970-01-01T00:00:06\napple\n")
    assert call("record", "--dir", trained, "--file", file).err == "recorded 3 interactions\n"
    events = interactions_in(trained)[2:]
    assert events[:2] == [("egg", 5.0), ("fig", 6.0)]
    assert events[2][0] == "apple"
    assert events[2][1] > 1e9


def test_record_works_while_the_agent_has_the_directory(call: Call, trained: Path) -> None:
    """Two processes write to the same database."""
    with exclusive(trained):
        assert call("record", "--dir", trained, "egg").code == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), ExitCode.USAGE, ("give either ITEMs or --file FILE",)),
        (("egg", "--file", "FILE"), ExitCode.USAGE, ("give either ITEMs or --file FILE",)),
        (("--file", "FILE", "--at", "5"), ExitCode.USAGE, ("--at goes with ITEMs",)),
        (("egg", "--at", "tomorrow"), ExitCode.USAGE, ("'tomorrow' is no time",)),
        (("egg", "--at", "-5"), ExitCode.USAGE, ("between the years 1970 and 9999",)),
        (("egg", "cake"), ExitCode.UNKNOWN_ITEM, ("'cake' is not in the catalogue", "nothing was recorded")),
        (("a", "b", "egg"), ExitCode.UNKNOWN_ITEM, ("'a', 'b' are not in the catalogue",)),
        (("a", "b", "c", "d", "e"), ExitCode.UNKNOWN_ITEM, ("'a', 'b', 'c' and 2 more are not",)),
        (("egg", ""), ExitCode.DATA_FORMAT, ("the item is empty",)),
        (("egg", "a\nb"), ExitCode.DATA_FORMAT, ("control characters",)),
        (("egg", "x" * 300), ExitCode.DATA_FORMAT, ("longer than",)),
        (("--file", "nowhere.csv"), ExitCode.FILE_UNREADABLE, ("nowhere.csv", "no such file")),
        (("--file", "."), ExitCode.FILE_UNREADABLE, ("is a directory",)),
    ],
)
def test_record_that_is_wrong_records_nothing(
    call: Call,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: ExitCode,
    words: tuple[str, ...],
) -> None:
    """All of a call, or none."""
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("egg,5\n")
    before = dump(trained / DATABASE_NAME)
    assert_refused(call("record", "--dir", trained, *arguments), code, *words)
    assert dump(trained / DATABASE_NAME) == before


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", ExitCode.DATA_FORMAT, "FILE: the file is empty"),
        (b"\x7fELF\x02\x01\0\0", ExitCode.DATA_FORMAT, "FILE, line 1: a NUL byte; this is a binary file"),
        (b"egg,5\nfig,6,7\n", ExitCode.DATA_FORMAT, "FILE, line 2: 3 fields"),
        (b"egg,5\nfig,late\n", ExitCode.DATA_FORMAT, "FILE, line 2: 'late' is no time"),
        (b"item\n", ExitCode.DATA_FORMAT, "FILE: there is a header but no event"),
        (b"egg,5\ncake,6\n", ExitCode.UNKNOWN_ITEM, "'cake' is not in the catalogue"),
    ],
)
def test_record_of_a_broken_file_names_the_line_and_records_nothing(
    call: Call,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    code: ExitCode,
    words: str,
) -> None:
    """Not even the lines before it."""
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_bytes(content)
    before = dump(trained / DATABASE_NAME)
    assert_refused(call("record", "--dir", trained, "--file", "FILE"), code, words)
    assert dump(trained / DATABASE_NAME) == before


def test_record_of_bytes_that_are_no_text_is_refused(call: Call, directory: Path) -> None:
    """As a terminal with another encoding sends them."""
    item = os.fsdecode(b"caf\xe9")
    assert_refused(call("record", "--dir", directory, item), ExitCode.DATA_FORMAT, "ITEM")
    assert interactions_in(directory) == []


@pytest.mark.root
def test_record_on_a_full_disk_says_so_and_records_nothing(call: Call, small_disk: Path) -> None:
    """With room again it works."""
    directory = small_disk / "me"
    initialise(directory, DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://10.0.0.2"))
    filler = fill_disk(small_disk)
    found = call("record", "--dir", directory, "bread")
    assert_refused(found, ExitCode.DISK_FULL, "no space is left", "nothing was lost")
    filler.unlink()
    assert interactions_in(directory) == []
    assert call("record", "--dir", directory, "bread").code == ExitCode.OK


@pytest.mark.root
def test_init_on_a_full_disk_says_so(call: Call, small_disk: Path) -> None:
    """And can be called again."""
    filler = fill_disk(small_disk)
    assert_refused(call("init", "--dir", small_disk / "me", *INIT), ExitCode.DISK_FULL, "no space is left")
    filler.unlink()
    assert call("init", "--dir", small_disk / "me", *INIT).code == ExitCode.OK


def test_record_while_the_database_is_locked_says_so(
    call: Call, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a wait; shortened here."""
    monkeypatch.setattr(broker.storage, "_BUSY_TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(directory / DATABASE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = call("record", "--dir", directory, "bread")
        other.execute("ROLLBACK")
    assert_refused(found, ExitCode.IN_USE, "locked by another process")
    assert interactions_in(directory) == []


# -- recommend -------------------------------------------------------------------------------------


def test_recommend_lists_the_best_items(call: Call, trained: Path) -> None:
    """A place, a score and a key a line; before the first pass it says whose order it is."""
    found = call("recommend", "--dir", trained, "--top", "3")
    assert found.code == ExitCode.OK
    assert found.out.splitlines() == ["   1  0.8520  apple", "   2  0.8520  fig", "   3  0.7773  cheese"]
    why = "start is not running"
    assert found.err == f"no training yet ({why}): the order is the fleet's, the same for every new user\n"


def test_recommend_tells_of_what_it_leaves_out(call: Call, trained: Path, tmp_path: Path) -> None:
    """Items that nobody knows, and a list with nothing left in it."""
    seen = tmp_path / "seen"
    call("record", "--dir", trained, "apple")
    seen.write_text("apple\nnobody knows\n")
    found = call("recommend", "--dir", trained, "--filter", seen)
    assert (found.code, found.out) == (ExitCode.OK, "")
    assert "1 of 2 items to choose among are not in the catalogue" in found.err
    assert "nothing is left to recommend" in found.err


def test_record_of_a_far_future_says_how_to_take_it_back(call: Call, trained: Path) -> None:
    """A mistyped year would make the clock look wrong for years."""
    found = call("record", "--dir", trained, "apple", "--at", "2099-05-01")
    assert found.code == ExitCode.OK
    assert f"edge-client forget --dir {trained} --from 2099-05-01" in found.err


def test_recommend_gives_json(call: Call, trained: Path) -> None:
    """The same with all digits, and nothing beside it; after a pass it is personal."""
    personal = a_personal_state(rows=(4,))
    with closing(open_store(trained)) as store:
        store.save_pass(personal, Progress(), None)
    assert call("recommend", "--dir", trained).err == ""
    found = call("recommend", "--dir", trained, "--json")
    assert (found.code, found.err) == (ExitCode.OK, "")
    result: dict[str, Any] = json.loads(found.out)
    assert (result["version"], result["personal"]) == (7, True)
    logits = personal.view(TABLE) @ personal.score_function.w + np.float32(personal.score_function.b)
    order = [row for row in np.argsort(-logits, kind="stable").tolist() if row != 1]
    assert [each["item"] for each in result["items"]] == [ITEM_KEYS[row] for row in order]
    assert [each["rank"] for each in result["items"]] == [1, 2, 3, 4, 5]
    scores = [each["score"] for each in result["items"]]
    assert scores == pytest.approx(sigmoid(logits[order].astype(np.float32)).tolist(), abs=1e-6)


def test_recommend_among_the_items_of_a_file(call: Call, trained: Path, tmp_path: Path) -> None:
    """Only these, also those that the user knows if they are asked for."""
    file = tmp_path / "in-stock.txt"
    listed = call("recommend", "--dir", trained, "--include-seen").out.splitlines()
    every = [line.split()[-1] for line in listed]
    file.write_text(f"{every[2]}\n\n{every[0]}\nno such item\n")

    found = call("recommend", "--dir", trained, "--include-seen", "--filter", file)

    assert [line.split()[-1] for line in found.out.splitlines()] == [every[0], every[2]]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"no such item\n", ExitCode.UNKNOWN_ITEM, "none of the items"),
        (b"", ExitCode.DATA_FORMAT, "empty"),
        (b"\x00\x01", ExitCode.DATA_FORMAT, "binary"),
        (None, ExitCode.FILE_UNREADABLE, "nothing-here"),
    ],
)
def test_recommend_with_a_filter_that_is_none(
    call: Call, trained: Path, tmp_path: Path, content: bytes | None, code: ExitCode, words: str
) -> None:
    """A sentence, and its code."""
    file = tmp_path / ("nothing-here" if content is None else "filter.txt")
    if content is not None:
        file.write_bytes(content)

    assert_refused(call("recommend", "--dir", trained, "--filter", file), code, words)


def test_recommend_explains(call: Call, trained: Path) -> None:
    """The user's own items that speak for an item stand behind it."""
    found = call("recommend", "--dir", trained, "--explain", "--json")

    reasons = [each["because"] for each in json.loads(found.out)["items"]]
    assert any(reasons)
    shown = call("recommend", "--dir", trained, "--explain").out
    assert shown.count("because of") == sum(map(bool, reasons))


def test_recommend_before_the_first_table_says_what_to_do(call: Call, directory: Path) -> None:
    """Nothing to recommend from is no crash."""
    found = call("recommend", "--dir", directory)
    assert_refused(found, ExitCode.NOTHING_YET, "there is no model on this device yet", "edge-client start")


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_recommend_with_no_number_is_a_usage_error(call: Call, trained: Path, top: str) -> None:
    """At least one item."""
    assert_refused(call("recommend", "--dir", trained, "--top", top), ExitCode.USAGE, "--top")


def test_recommend_with_a_damaged_table_says_so(call: Call, trained: Path) -> None:
    """Rather than something wrong."""
    with closing(sqlite3.connect(trained / DATABASE_NAME)) as connection, connection:
        connection.execute("UPDATE model SET item_table = zeroblob(length(item_table))")
    assert_refused(call("recommend", "--dir", trained), ExitCode.CORRUPT, "SHA-256")


def test_recommend_without_the_wanted_tflite_says_how_to_get_it(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wanted by name; `auto` would take numpy."""
    for package in RUNTIMES:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PFEDREC_SCORER", "tflite")
    found = call("recommend", "--dir", trained)
    assert_refused(found, ExitCode.MISSING_EXTRA, "TFLite cannot be used here", "pip install")
    monkeypatch.setenv("PFEDREC_SCORER", "auto")
    assert call("recommend", "--dir", trained).code == ExitCode.OK
    assert json.loads(call("status", "--dir", trained, "--json").out)["scorer"] == "numpy"


# -- status ----------------------------------------------------------------------------------------


def test_status_of_new_device_tells_what_is_missing(call: Call, directory: Path) -> None:
    """A line for each fact, aligned."""
    found = call("status", "--dir", directory)
    assert (found.code, found.err) == (ExitCode.OK, "")
    facts = dict(line.split(maxsplit=1) for line in found.out.splitlines())
    assert facts == {
        "device_id": "pi-1",
        "fleet": "shop",
        "broker": "mqtt://10.0.0.2:1883",
        "running": "False",
        "online": "False",
        "activity": "stopped",
        "reason": "start is not running",
        "next_check_in_s": "-",
        "next_look_s": "-",
        "unknown_facts": "none",
        "head_complaint": "-",
        "version": "-",
        "sha256": "-",
        "stored_version": "-",
        "items": "-",
        "interactions": "0",
        "known_items": "0",
        "unknown_items": "0",
        "last_training": "-",
        "updates_made": "0",
        "outbox": "0",
        "receipts": "none yet",
        "withdrawn": "0",
        "damaged_files": "none",
        "scorer": "numpy",
        "release": "-",
        "release_on_trial": "False",
        "release_failed": "-",
    }
    assert len({len(line) - len(line.split(maxsplit=1)[1]) for line in found.out.splitlines()}) == 1


def test_status_gives_json(call: Call, trained: Path) -> None:
    """While the agent runs, with what it has left."""
    with closing(open_store(trained)) as store:
        store.save_pass(a_personal_state(), Progress(), (1, b"x"))
        store.settle(1, "accepted")
        store.save_pass(a_personal_state(), Progress(), (2, b"y"))
        store.set_facts(online=1, activity="training", reason="new interactions")
    with exclusive(trained):
        found = call("status", "--dir", trained, "--json")
    assert (found.code, found.err) == (ExitCode.OK, "")
    assert json.loads(found.out) == {
        "device_id": "pi-1",
        "fleet": "shop",
        "broker": "mqtt://10.0.0.2:1883",
        "running": True,
        "online": True,
        "activity": "training",
        "reason": "new interactions",
        "next_check_in_s": None,
        "next_look_s": None,
        "unknown_facts": [],
        "head_complaint": None,
        "version": 7,
        "sha256": a_head(7, table=TABLE).sha256.hex(),
        "stored_version": 7,
        "items": 6,
        "interactions": 2,
        "known_items": 1,
        "unknown_items": 1,
        "last_training": None,
        "updates_made": 2,
        "outbox": 1,
        "receipts": {"accepted": 1},
        "withdrawn": 0,
        "damaged_files": [],
        "scorer": "numpy",
        "release": None,
        "release_on_trial": False,
        "release_failed": None,
    }


def test_status_of_stopped_device_is_offline(call: Call, trained: Path) -> None:
    """Whatever its last run has left, for example when it was killed."""
    with closing(open_store(trained)) as store:
        store.set_facts(online=1, activity="training", reason="new interactions")
    facts = json.loads(call("status", "--dir", trained, "--json").out)
    assert (facts["running"], facts["online"], facts["activity"]) == (False, False, "stopped")


def test_status_hides_the_password(call: Call, tmp_path: Path) -> None:
    """In either form."""
    initialise(
        tmp_path / "me", DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://ann:secret@10.0.0.2")
    )
    for options in ((), ("--json",)):
        found = call("status", "--dir", tmp_path / "me", *options)
        assert "mqtt://ann@10.0.0.2:1883" in found.out
        assert "secret" not in found.out + found.err


# -- start -----------------------------------------------------------------------------------------


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Give this process its signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_start_tells_whose_device_it_runs_and_stops_by_a_signal(call: Call, trained: Path) -> None:
    """With the broker of the flag, which never answers; what was recorded is learnt all the same."""
    with socket.create_server((HOST, 0)) as server:
        address = f"mqtt://{HOST}:{server.getsockname()[1]}"

        def has_learnt() -> bool:
            with looking_at(trained) as store:
                return store.personal() is not None

        def stop() -> None:
            link, _ = server.accept()
            with link:
                link.recv(1000)
                wait_until(has_learnt, "a local pass")
                os.kill(os.getpid(), signal.SIGTERM)

        stopper = threading.Thread(target=stop)
        stopper.start()
        found = call("start", "--dir", trained, "--broker", address, "--seed", "5", "--verbose")
        stopper.join()
    assert found.code == ExitCode.OK
    assert found.err.startswith(f"device pi-1 of fleet shop, broker {address}\n")
    assert found.err.endswith("stopped\n")
    assert json.loads(call("status", "--dir", trained, "--json").out)["running"] is False


@pytest.mark.usefixtures("own_signals")
def test_start_that_the_broker_refuses_says_why(call: Call, directory: Path) -> None:
    """The process ends: trying again would not help."""
    with socket.create_server((HOST, 0)) as server:
        address = f"mqtt://ann:secret@{HOST}:{server.getsockname()[1]}"

        def refuse() -> None:
            link, _ = server.accept()
            with link:
                link.recv(1000)
                link.sendall(bytes([0x20, 2, 0, 5]))
                link.recv(1000)

        refuser = threading.Thread(target=refuse)
        refuser.start()
        found = call("start", "--dir", directory, "--broker", address)
        refuser.join()
    assert found.code == ExitCode.REFUSED
    assert "refuses the device pi-1: not authorized; check the id, user name and password" in found.err
    assert "secret" not in found.err


@pytest.mark.usefixtures("own_signals")
def test_start_with_a_wrong_broker_is_refused(call: Call, directory: Path) -> None:
    """The sentence has the address."""
    found = call("start", "--dir", directory, "--broker", "10.0.0.2")
    assert found.code in (ExitCode.USAGE, ExitCode.CONFIG)
    assert "'10.0.0.2' is no broker address; write mqtt://HOST:PORT" in found.err


@pytest.mark.usefixtures("own_signals")
def test_start_in_a_directory_in_use_is_refused(call: Call, directory: Path) -> None:
    """Two agents would be one device twice."""
    with exclusive(directory):
        found = call("start", "--dir", directory)
    assert_refused(found, ExitCode.IN_USE, f"{directory} is in use by another process")


# -- as a process ----------------------------------------------------------------------------------


@pytest.mark.process
def test_entry_point_prints_utf_8_and_no_traceback(directory: Path) -> None:
    """As installed, also where the locale is the plainest."""
    command = Path(sys.executable).with_name("edge-client")
    environment = os.environ | {"LC_ALL": "C"}
    for item, code in (("Amélie", ExitCode.OK), ("a\tb", ExitCode.DATA_FORMAT)):
        found = subprocess.run(
            [command, "record", "--dir", directory, item],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            check=False,
            timeout=60,
        )
        assert found.returncode == code
        assert "Traceback" not in found.stderr
    assert [item for item, _ in interactions_in(directory)] == ["Amélie"]


def test_store_is_closed_after_every_command(call: Call, trained: Path) -> None:
    """Nothing is left open that another process would wait for."""
    for command in ("status", "recommend"):
        call(command, "--dir", trained)
    with closing(DeviceStore(trained / DATABASE_NAME)):
        assert (trained / f"{DATABASE_NAME}-wal").exists()
    assert not (trained / f"{DATABASE_NAME}-wal").exists()
