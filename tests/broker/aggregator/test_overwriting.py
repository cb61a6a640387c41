"""What `backup` and `export` write over: an earlier file of their own kind, and nothing else."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from zipfile import ZipFile

import pytest

from broker.exit_codes import ExitCode
from broker.storage import exclusive
from tests.broker.aggregator.test_cli import Call, call
from tests.broker.aggregator.test_keeping import Shop, a_config

__all__ = ["call"]

COMMANDS = {"backup": ["backup"], "table": ["export", "--table"], "rounds": ["export", "--rounds"]}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Give a directory with a round."""
    made = Shop(tmp_path / "shop", a_config())
    made.serve(5)
    return made


def a_fifo(folder: Path, _: Path) -> Path:
    """A pipe, which nobody has opened: who opens it waits for ever."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def a_link_to_a_fifo(folder: Path, shop: Path) -> Path:
    """As /dev/stdout is in a pipeline."""
    (folder / "link").symlink_to(a_fifo(folder, shop))
    return folder / "link"


def a_link_to_nothing(folder: Path, _: Path) -> Path:
    """Whose target somebody may be about to make."""
    (folder / "link").symlink_to(folder / "nothing")
    return folder / "link"


def a_link_to_notes(folder: Path, _: Path) -> Path:
    """To a file of another kind."""
    (folder / "notes").write_text("milk")
    (folder / "link").symlink_to(folder / "notes")
    return folder / "link"


def the_lock(_: Path, shop: Path) -> Path:
    """An empty file, but not for who holds it."""
    return shop / "lock"


def an_empty_list(_: Path, shop: Path) -> Path:
    """Nobody is blocked."""
    (shop / "blocked.txt").touch()
    return shop / "blocked.txt"


def an_archive(folder: Path, _: Path) -> Path:
    """A ZIP, but no table."""
    with ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("photo", b"sea")
    return folder / "photos.zip"


def a_database(folder: Path, _: Path) -> Path:
    """Another program's, which keeps track of its migrations, too."""
    with closing(sqlite3.connect(folder / "bookmarks")) as connection:
        connection.execute("CREATE TABLE migrations (name)")
    return folder / "bookmarks"


def seen(path: Path) -> tuple[object, ...]:
    """What a path is: the file itself, where a link points, and what is in a regular one."""
    found = path.lstat()
    return (
        (found.st_mode, found.st_ino, found.st_size),
        path.is_symlink() and path.readlink(),
        path.is_file() and path.read_bytes(),
    )


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    "what",
    [
        a_fifo,
        a_link_to_a_fifo,
        a_link_to_nothing,
        a_link_to_notes,
        the_lock,
        an_empty_list,
        an_archive,
        a_database,
    ],
)
def test_what_is_no_file_of_the_kind_stays(
    shop: Shop, call: Call, what: Callable[[Path, Path], Path], command: list[str], tmp_path: Path
) -> None:
    """One sentence, and nothing is made beside it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = what(folder, shop.path)
    before = {each: seen(each) for each in (*folder.iterdir(), path)}
    names = sorted(each.name for each in (*folder.iterdir(), *shop.path.iterdir()))

    outcome = call(command[0], "--dir", shop.path, *command[1:], path)

    assert outcome.code == ExitCode.USAGE
    assert f"{path} is there, and is" in outcome.sentence
    assert {each: seen(each) for each in before} == before
    assert sorted(each.name for each in (*folder.iterdir(), *shop.path.iterdir())) == names


def test_lock_of_who_serves_stays_locked(shop: Shop, call: Call) -> None:
    """A second `start` would serve the same directory."""
    with exclusive(shop.path):
        assert call("backup", "--dir", shop.path, shop.path / "lock").code == ExitCode.USAGE
        assert call("rollback", "--dir", shop.path, 0).code == ExitCode.IN_USE


@pytest.mark.parametrize("name", ["backup", "table"])
def test_empty_file_is_of_no_kind(shop: Shop, call: Call, name: str, tmp_path: Path) -> None:
    """Somebody may hold it: a lock is empty, and so is a list of nobody."""
    (tmp_path / "empty").touch()

    assert call(COMMANDS[name][0], "--dir", shop.path, *COMMANDS[name][1:], tmp_path / "empty").code == 2
    assert (tmp_path / "empty").read_bytes() == b""


def test_rounds_of_a_young_fleet_are_replaced(tmp_path: Path, call: Call) -> None:
    """It had none when they were written first: the file is empty."""
    shop, file = Shop(tmp_path / "shop", a_config()), tmp_path / "rounds.jsonl"
    assert call("export", "--dir", shop.path, "--rounds", file).code == ExitCode.OK
    assert file.read_bytes() == b""
    shop.serve(5)

    assert call("export", "--dir", shop.path, "--rounds", file).code == ExitCode.OK
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_link_to_an_earlier_one_stays_and_its_target_is_replaced(
    shop: Shop, call: Call, command: list[str], tmp_path: Path
) -> None:
    """As with any program that writes a file through a link."""
    target, link = tmp_path / "disk" / "monday", tmp_path / "latest"
    target.parent.mkdir()
    link.symlink_to(target)
    call_it = (command[0], "--dir", shop.path, *command[1:])
    assert call(*call_it, target).code == ExitCode.OK
    before = target.read_bytes()
    shop.serve(8)

    assert call(*call_it, link).code == ExitCode.OK

    assert link.readlink() == target
    assert target.read_bytes() != before
    assert [each.name for each in target.parent.iterdir()] == ["monday"]
