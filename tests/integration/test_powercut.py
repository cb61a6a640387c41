"""Power cuts at some of all moments, seeded; ``scripts/prove powercuts`` cuts at every one."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.disk import Disk
from tests.integration.filelog import (
    Cut,
    Made,
    Operation,
    Removed,
    Renamed,
    Said,
    Synced,
    Wrote,
    watch,
    why_not,
)
from tests.integration.powercut import DAMAGES, prove_life, prove_rebuild


@pytest.fixture
def strace() -> None:
    """Need a strace that may watch processes."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


pytestmark = pytest.mark.process


@pytest.mark.usefixtures("strace")
def test_power_cut_loses_nothing_that_was_done(tmp_path: Path) -> None:
    """At some moments of a life: what was done is there, what was forgotten is gone, nothing is to repair."""
    outcome = prove_life(tmp_path, seed=2, count=60, sample=400)
    assert outcome.operations > 500
    assert outcome.holds, str(outcome)


@pytest.mark.usefixtures("strace")
def test_disk_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    """The proof sees what a store would lose that does not wait for the disk."""
    outcome = prove_life(tmp_path, seed=2, count=30, sample=100, careless=True)
    assert not outcome.holds


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("damage", DAMAGES)
def test_power_cut_does_not_spoil_a_rebuild(tmp_path: Path, damage: str) -> None:
    """Nothing that can be read of a damaged database is lost, and the damaged file is kept."""
    outcome = prove_rebuild(tmp_path, damage, seed=2, sample=150)
    assert outcome.holds, str(outcome)


@pytest.mark.usefixtures("strace")
def test_watched_process_tells_all_that_it_does(tmp_path: Path) -> None:
    """In order, with what it prints between."""
    folder = (tmp_path / "folder").resolve()
    folder.mkdir()
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "file = os.open(os.path.abspath('a, b'), os.O_CREAT | os.O_RDWR)\n"
        "os.write(file, b'one')\n"
        "os.write(1, b'half\\n')\n"
        "os.write(file, b'two')\n"
        "os.pwrite(file, b'\\0x', 1)\n"
        "os.fsync(file)\n"
        "os.ftruncate(file, 4)\n"
        "os.rename(os.path.abspath('a, b'), os.path.abspath('c'))\n"
        "os.unlink(os.path.abspath('c'))\n"
    )

    found = watch([sys.executable, "-c", script, str(folder)], folder, tmp_path / "log")

    first, last = folder / "a, b", folder / "c"
    assert found == [
        Made(first),
        Wrote(first, 0, b"one"),
        Said("half"),
        Wrote(first, 3, b"two"),
        Wrote(first, 1, b"\0x"),
        Synced(first),
        Cut(first, 4),
        Renamed(first, last),
        Removed(last),
    ]


FOLDER = Path("/folder")
FILE = FOLDER / "file"


def left(*operations: Operation, fate: str, seed: int = 1) -> dict[str, bytes]:
    """Give what is left of operations by name."""
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    remains = disk.remains(fate, random.Random(seed))  # type: ignore[arg-type]
    return {path.name: content for path, content in remains.items()}


def test_disk_has_what_was_synced_whatever_happens() -> None:
    """A file's content, and its name where the folder was synced."""
    done = (Made(FILE), Wrote(FILE, 0, b"a" * 600), Synced(FILE), Synced(FOLDER))
    for fate in ("all", "lost", "nameless", "torn", "some"):
        assert left(*done, fate=fate) == {"file": b"a" * 600}


def test_disk_may_lose_what_was_not_synced() -> None:
    """Its content, or its name too."""
    done = (Made(FILE), Synced(FOLDER), Wrote(FILE, 0, b"a" * 600), Cut(FILE, 500))
    assert left(*done, fate="all") == {"file": b"a" * 500}
    assert left(*done, fate="lost") == {"file": b""}
    assert left(*done, Renamed(FILE, FOLDER / "new"), fate="nameless") == {"file": b""}
    assert left(*done, Renamed(FILE, FOLDER / "new"), fate="all") == {"new": b"a" * 500}
    assert left(*done, Removed(FILE), fate="nameless") == {"file": b""}


def test_disk_may_have_parts_of_what_was_not_synced() -> None:
    """Whole sectors of them."""
    done = (Made(FILE), Wrote(FILE, 0, b"a" * 512), Synced(FILE), Synced(FOLDER), Wrote(FILE, 0, b"b" * 1024))
    assert {left(*done, fate="torn", seed=seed)["file"] for seed in range(50)} == {
        b"a" * 512, b"b" * 512, b"b" * 1024
    }  # fmt: skip


def test_powercut_where_processes_cannot_be_watched_says_why(tmp_path: Path) -> None:
    """Without strace there is no proof, and no claim of one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.powercut"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert "strace is not installed" in done.stderr
