"""What an operator does to a store: prove it, back it up, restore it, roll back, take tables out and in."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from broker.aggregator.catalogue_changes import CatalogueChange
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CloseRound, Command, Journal, ReplyReceipt
from broker.aggregator.directory import initialise, load_config, open_store, serving
from broker.aggregator.examination import examine, ledger_agrees
from broker.aggregator.keeping import LOST_VERSIONS, back_up, import_table, restore, roll_back, table_file
from broker.aggregator.store.interface import Batch
from broker.aggregator.store.schema import VERSIONS
from broker.aggregator.store.sql import SqlStore
from broker.errors import CorruptError, DataError, FileUnreadableError, InputError, InUseError
from broker.exit_codes import ExitCode
from broker.protocol.messages import encode
from broker.storage import exclusive
from tests.broker.aggregator.builders import a_change, an_update
from tests.broker.aggregator.old_database import DUMPS, dump
from tests.broker.aggregator.old_database import restore as restore_dump
from tests.broker.aggregator.test_cli import Call, call
from tests.postgres import Cluster, programs
from trainer.errors import ParameterError

__all__ = ["call"]

N_ITEMS = 6
STRATEGIES: dict[str, dict[str, object]] = {
    "fedbuff": {},
    "fedavg": {"strategy": "fedavg"},
    "robust": {"robust": "trimmed-mean", "trim": 0.2, "clip_to_median": 2.0},
    "adam": {"server_optimiser": "adam"},
}


class Shop:
    """An aggregator's directory, and a core that serves it without a broker."""

    def __init__(self, path: Path, config: AggregatorConfig) -> None:
        self.path = path
        items = path.with_suffix(".txt")
        items.write_text("".join(f"item {row}\n" for row in range(N_ITEMS)))
        initialise(path, config, items, dim=3, seed=1, created_at=0.0)
        self.config = replace(load_config(path, {}), store=config.store)
        self.seq = 0

    def open(self, config: AggregatorConfig | None = None) -> SqlStore:
        """Open the store."""
        return open_store(self.path, config or self.config)

    def serve(self, n_updates: int, config: AggregatorConfig | None = None, *, batch: int = 3) -> list[str]:
        """Send updates, as a start of the aggregator would take them; give the verdicts."""
        config = config or self.config
        verdicts: list[str] = []
        with closing(self.open(config)) as store:
            core = AggregatorCore(
                config.round_settings, config.make_strategy(), store.load(), store.pending()
            )
            commands: list[Command] = []
            for number in range(n_updates):
                self.seq += 1
                change = a_change(self.seq, n_items=N_ITEMS)
                base = max(0, core.version - number % 3)
                update = an_update(seq=self.seq, base_version=base, instance=core.instance, change=change)
                commands += core.update_received(f"pi{self.seq % 4}", update, encode(update), 0.0)
                if number % batch == batch - 1 or number == n_updates - 1:
                    store.commit(self._batch(commands, config))
                    verdicts += [c.receipt.verdict for c in commands if isinstance(c, ReplyReceipt)]
                    commands = []
        return verdicts

    def add_item(self, key: str) -> None:
        """Add an item, which closes the open round."""
        self._change(CatalogueChange(kind="add", items=((key,),), source="new.txt", lines=(1,)))

    def retire_item(self, key: str) -> None:
        """Retire an item, which closes the open round."""
        self._change(CatalogueChange(kind="retire", items=((key,),), source="old.txt", lines=(1,)))

    def _change(self, change: CatalogueChange) -> None:
        with closing(self.open()) as store:
            number = store.queue_change(change, 0.0)
            core = AggregatorCore(
                self.config.round_settings, self.config.make_strategy(), store.load(), store.pending()
            )
            store.commit(self._batch(core.change_catalogue(number, change), self.config))

    def _batch(self, commands: Sequence[Command], config: AggregatorConfig) -> Batch:
        durable = [command for command in commands if isinstance(command, Journal | CloseRound)]
        return Batch(commands=durable, closed_at=0.0, strategy=json.dumps(asdict(config.aggregation)))


def a_config(**settings: Any) -> AggregatorConfig:
    """Give a configuration whose rounds are of four updates."""
    return AggregatorConfig(fleet="shop", buffer=4, **settings)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def new_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Shop]:
    """Give what makes a directory with a store of each kind."""
    cluster: Cluster | None = None
    if request.param == "postgresql":
        if programs() is None:
            pytest.skip("PostgreSQL is not installed; to run this test: apt-get install postgresql")
        cluster = request.getfixturevalue("cluster")

    def make(name: str = "shop", **settings: object) -> Shop:
        store = "" if cluster is None else cluster.new_store()
        return Shop(tmp_path / name, a_config(store=store, **settings))

    return make


@pytest.fixture
def shop(new_shop: Callable[..., Shop]) -> Shop:
    """Give a directory whose store has three rounds and an update that waits."""
    made = new_shop()
    made.serve(13)
    return made


def judgements(shop: Shop, config: AggregatorConfig | None = None) -> list[tuple[int, str]]:
    """Examine a store."""
    with closing(shop.open(config)) as store:
        assert ledger_agrees(store)
        return [(each.version, each.judgement) for each in examine(store)]


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_every_version_is_made_anew_from_the_journal(
    new_shop: Callable[..., Shop], strategy: dict[str, object]
) -> None:
    """Whatever the strategy, across restarts in the middle of a round."""
    shop = new_shop(**strategy)
    for _ in range(3):
        shop.serve(6)

    assert judgements(shop) == [(version, "proved") for version in (1, 2, 3, 4)]


def test_version_whose_values_overflowed_is_no_alarm(tmp_path: Path) -> None:
    """An earlier release made it from the same updates; this one makes another of them."""
    shop = Shop(tmp_path / "shop", a_config(server_optimiser="adam"))
    with closing(shop.open()) as store:
        config = shop.config
        core = AggregatorCore(config.round_settings, config.make_strategy(), store.load())
        commands: list[Command] = []
        for seq in range(1, 5):
            change = a_change(seq, n_items=N_ITEMS, scale=1e29)
            update = an_update(seq=seq, instance=core.instance, change=change)
            commands += core.update_received("pi", update, encode(update), 0.0)
        (closed,) = [command for command in commands if isinstance(command, CloseRound)]
        state = {name: values.copy() for name, values in closed.round.strategy_state.items()}
        state["v"][state["v"] > 1e30] = np.inf
        overflowed = CloseRound(replace(closed.round, strategy_state=state))
        journalled = [command for command in commands if isinstance(command, Journal)]
        settings = json.dumps(asdict(config.aggregation))
        store.commit(Batch(commands=[*journalled, overflowed], closed_at=0.0, strategy=settings))

    assert judgements(shop) == [(1, "kept")]
    shop.serve(4)
    assert judgements(shop) == [(1, "kept"), (2, "proved")]


def test_what_was_retired_is_kept_as_long_as_the_table(new_shop: Callable[..., Shop]) -> None:
    """Versions before the window have no more than their figures; those in it are proved."""
    shop = new_shop(keep_versions=2)
    shop.retire_item("item 3")
    shop.serve(4 * 5)

    assert [judgement for _, judgement in judgements(shop)] == [*["forgotten"] * 3, "kept", *["proved"] * 2]
    with closing(shop.open()) as store, store.transaction(reading=True) as connection:
        kept = connection.execute(select(VERSIONS.c.retired.is_not(None)).order_by(VERSIONS.c.version))
        assert list(kept.scalars()) == [False] * 4 + [True] * 3


def test_change_of_strategy_is_no_alarm(shop: Shop) -> None:
    """Each version is made anew with the strategy that made it."""
    other = replace(shop.config, strategy="fedavg", server_optimiser="adam")
    shop.serve(8, other)

    assert judgements(shop, other) == [(version, "proved") for version in range(1, 6)]


def test_change_of_the_catalogue_is_made_anew_too(shop: Shop) -> None:
    """A version with new rows, and those after it."""
    shop.add_item("new")
    shop.serve(5)

    assert {judgement for _, judgement in judgements(shop)} == {"proved"}


def test_versions_before_the_window_are_forgotten(new_shop: Callable[..., Shop]) -> None:
    """The window is replayed whole: its first version from the table before it."""
    shop = new_shop(keep_versions=3)
    shop.serve(4 * 6)

    assert judgements(shop) == [
        (1, "forgotten"),
        (2, "forgotten"),
        (3, "kept"),
        (4, "proved"),
        (5, "proved"),
        (6, "proved"),
    ]


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE journal SET staleness = staleness + 1 WHERE version = 2", 2),
        ("DELETE FROM bodies WHERE id = (SELECT min(id) FROM journal WHERE version = 2)", 2),
        ("UPDATE versions SET population = population + 1 WHERE version = 3", 3),
        ("UPDATE versions SET sha256 = zeroblob(32) WHERE version = 2", 2),
        ('UPDATE versions SET strategy = \'{"strategy": "fedavg"}\' WHERE version = 3', 3),
    ],
)
def test_what_was_changed_behind_the_stores_back_is_found(statement: str, wrong: int, tmp_path: Path) -> None:
    """One entry that is not what it was, and the version is not what the journal says."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(13)
    with closing(sqlite3.connect(shop.path / "state.sqlite3")) as connection, connection:
        connection.execute(statement)

    with closing(shop.open()) as store:
        found = {each.version: each.judgement for each in examine(store)}

    assert found[wrong] == "wrong"


def test_backup_is_restored_as_a_version_above_all(shop: Shop, tmp_path: Path) -> None:
    """The table is that of the backup; what waited then waits; updates of lost versions are rejected."""
    file = tmp_path / "backup.sqlite3"
    with closing(shop.open()) as store:
        assert back_up(store, file) == 3
        before = store.load()
    assert file.stat().st_mode & 0o077 == 0
    shop.serve(9)
    with closing(shop.open()) as store:
        lost = store.load().version

    assert restore(shop.path, shop.config, file, 5.0) == (3, lost + 1)

    with closing(shop.open()) as store:
        state = store.load()
        assert (state.version, state.instance) == (lost + 1, before.instance)
        np.testing.assert_array_equal(state.table, before.table)
        assert state.answered == before.answered
        assert len(store.pending()) == 1
        assert store.next_session() > LOST_VERSIONS
        assert store.rounds(1)[0].kind == "restore"
        assert state.rolled_back == [(3, lost + 1)]
    # Of each three, two are made from versions that were lost.
    assert shop.serve(7) == [*["accepted", "rejected", "rejected"] * 2, "accepted"]
    assert judgements(shop)[-1] == (lost + 2, "proved")


def test_numbers_only_grow_however_often_a_backup_is_restored(
    new_shop: Callable[..., Shop], tmp_path: Path
) -> None:
    """Devices take no session and no version twice, whether the store can be read or not."""
    shop, file, sessions, versions = new_shop(), tmp_path / "backup", [0], [-1]
    shop.serve(5)
    with closing(shop.open()) as store:
        back_up(store, file)

    def is_newer() -> bool:
        with closing(shop.open()) as store:
            sessions.append(store.next_session())
            versions.append(store.load().version)
        return sessions[-1] > sessions[-2] and versions[-1] > versions[-2]

    assert is_newer()
    for damaged in (False, False, True, True, False):
        if damaged and not shop.config.store:
            for suffix in ("-wal", "-shm"):
                (shop.path / f"state.sqlite3{suffix}").unlink(missing_ok=True)
            (shop.path / "state.sqlite3").write_bytes(b"damaged " * 4096)
        restore(shop.path, shop.config, file, 5.0)
        assert is_newer()
        shop.serve(13)
        assert is_newer()
    assert len(list(shop.path.glob("state.sqlite3.damaged-*"))) == (0 if shop.config.store else 2)


def test_restore_on_another_machine_is_above_an_earlier_one(
    new_shop: Callable[..., Shop], tmp_path: Path
) -> None:
    """Where nothing but the backup is left, time tells them apart."""
    shop, file = new_shop(), tmp_path / "backup"
    shop.serve(5)
    with closing(shop.open()) as store:
        back_up(store, file)

    first, second = (new_shop(name) for name in ("first", "second"))
    _, earlier = restore(first.path, first.config, file, 1_000.0)
    _, later = restore(second.path, second.config, file, 2_000.0)

    assert (earlier, later) == (1 + 1_000 + LOST_VERSIONS, 1 + 2_000 + LOST_VERSIONS)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("by", ["path", "dots", "symlink", "hard link"])
def test_backup_over_the_store_itself_is_refused(suffix: str, by: str, tmp_path: Path, call: Call) -> None:
    """What was accepted since would be written into a file that is gone."""
    shop = Shop(tmp_path / "shop", a_config())
    with closing(shop.open()) as serving_it:  # its log is there
        serving_it.next_session()
        own = shop.path / f"state.sqlite3{suffix}"
        target = {
            "path": own,
            "dots": shop.path / ".." / "shop" / own.name,
            "symlink": tmp_path / "link",
            "hard link": tmp_path / "link",
        }[by]
        if by == "symlink":
            target.symlink_to(own)
        elif by == "hard link":
            target.hardlink_to(own)
        before = own.stat().st_ino

        outcome = call("backup", "--dir", shop.path, target)

        assert outcome.code == ExitCode.USAGE
        assert "name another file" in outcome.sentence
        assert own.stat().st_ino == before


def test_backup_takes_no_name_that_the_store_will_use(tmp_path: Path, call: Call) -> None:
    """Also while there is no such file."""
    shop = Shop(tmp_path / "shop", a_config())

    assert call("backup", "--dir", shop.path, shop.path / "state.sqlite3-wal").code == ExitCode.USAGE


def test_backup_moves_a_fleet_to_another_store(
    shop: Shop, new_shop: Callable[..., Shop], tmp_path: Path
) -> None:
    """Of whichever kind: all that was there is there, under versions that nobody can have seen."""
    file = tmp_path / "backup.sqlite3"
    with closing(shop.open()) as store:
        back_up(store, file)
        before = store.load()
    other = new_shop("other")

    assert restore(other.path, other.config, file, 5.0) == (3, 3 + 5 + LOST_VERSIONS)

    with closing(other.open()) as store:
        state = store.load()
        assert (state.instance, state.catalogue.keys) == (before.instance, before.catalogue.keys)
        np.testing.assert_array_equal(state.table, before.table)
    assert other.serve(1) == ["duplicate"]


def test_damaged_database_is_put_aside_for_the_backup(tmp_path: Path) -> None:
    """What a backup is for."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(5)
    with closing(shop.open()) as store:
        back_up(store, tmp_path / "backup")
    (shop.path / "state.sqlite3").write_bytes(b"damaged " * 4096)

    assert restore(shop.path, shop.config, tmp_path / "backup", 5.0) == (1, 1 + 5 + LOST_VERSIONS)

    assert len(list(shop.path.glob("state.sqlite3.damaged-*"))) == 1
    assert judgements(shop)[-1] == (1 + 5 + LOST_VERSIONS, "kept")


def test_database_with_damaged_pages_is_put_aside_too(tmp_path: Path, call: Call) -> None:
    """Though it opens."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(25)
    backup, own = tmp_path / "backup", shop.path / "state.sqlite3"
    with closing(shop.open()) as store:
        back_up(store, backup)
    content = bytearray(own.read_bytes())
    content[16_384:-8_192] = bytes(len(content) - 24_576)
    own.write_bytes(content)

    outcome = call("restore", "--dir", shop.path, "--yes", backup)

    assert outcome.code == ExitCode.OK, outcome.sentence
    (aside,) = shop.path.glob("state.sqlite3.damaged-*")
    assert aside.read_bytes() == content
    assert judgements(shop)[-1][1] == "kept"


def test_backup_of_another_fleet_replaces_a_used_one_only_when_told_to(
    new_shop: Callable[..., Shop], tmp_path: Path, call: Call
) -> None:
    """It is a mistake, most likely; what a file held is put aside even then."""
    shop, other, backup = new_shop(), new_shop("other"), tmp_path / "backup"
    for each in (shop, other):
        each.serve(5)
    with closing(other.open()) as store:
        back_up(store, backup)
        instance = store.instance()
    before = judgements(shop)

    with pytest.raises(InputError, match=rf"{backup} is of another fleet .*{instance}.*--another-fleet"):
        restore(shop.path, shop.config, backup, 5.0)

    assert judgements(shop) == before
    restore(shop.path, shop.config, backup, 5.0, another_fleet=True)
    with closing(shop.open()) as store:
        assert store.instance() == instance
    assert len(list(shop.path.glob("state.sqlite3.replaced-*"))) == (0 if shop.config.store else 1)


@pytest.mark.parametrize(
    "target", ["config.toml", "last-restore.json", "notes.txt", "other/state.sqlite3", "bookmarks"]
)
def test_nothing_but_an_earlier_one_is_written_over(target: str, tmp_path: Path, call: Call) -> None:
    """By a backup or an export: it may be the directory's own, another fleet's, or anybody's."""
    shop, other = (Shop(tmp_path / name, a_config()) for name in ("shop", "other"))
    for each in (shop, other):
        each.serve(5)
    (shop.path / "last-restore.json").write_text("{}")
    (shop.path / "notes.txt").write_text("milk")
    with closing(sqlite3.connect(shop.path / "bookmarks")) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
    file = other.path / "state.sqlite3" if "/" in target else shop.path / target
    before = file.read_bytes()
    for command in (["backup", file], ["export", "--table", file], ["export", "--rounds", file]):
        outcome = call(command[0], "--dir", shop.path, *command[1:])
        assert (outcome.code, "another file" in outcome.sentence) == (ExitCode.USAGE, True)
        assert file.read_bytes() == before
    for name, (verb, *options) in (
        ("b", ["backup"]),
        ("m", ["export", "--table"]),
        ("r", ["export", "--rounds"]),
    ):
        for _ in range(2):
            assert call(verb, "--dir", shop.path, *options, tmp_path / name).code == ExitCode.OK


def test_restore_leaves_the_backup_to_the_release_that_wrote_it(tmp_path: Path) -> None:
    """It is the way back to that release, and may lie on a disk that cannot be written."""
    shop = Shop(tmp_path / "shop", a_config())
    backup = tmp_path / "backups" / "monday"
    backup.parent.mkdir()
    restore_dump(DUMPS[0].read_text(), backup)
    before = backup.read_bytes()

    restore(shop.path, shop.config, backup, 5.0)

    assert [path.name for path in backup.parent.iterdir()] == ["monday"]
    assert backup.read_bytes() == before
    assert sorted(path.name for path in shop.path.iterdir()) == [
        "config.toml",
        "last-restore.json",
        "lock",
        "state.sqlite3",
    ]
    assert judgements(shop)[-1] == (2 + LOST_VERSIONS, "kept")


def test_backup_with_a_log_beside_it_is_restored_with_what_is_in_the_log(tmp_path: Path) -> None:
    """A copy of a store's files, made while it was open, is a backup too."""
    shop = Shop(tmp_path / "shop", a_config())
    with closing(shop.open()):
        shop.serve(5)
        for suffix in ("", "-wal"):
            (tmp_path / f"copy{suffix}").write_bytes((shop.path / f"state.sqlite3{suffix}").read_bytes())
    assert (tmp_path / "copy-wal").stat().st_size > 0

    assert restore(shop.path, shop.config, tmp_path / "copy", 5.0) == (1, 2)


@pytest.mark.parametrize("what", ["another program's database", "a damaged page"])
def test_damaged_backup_is_named_with_a_remedy_that_loses_nothing(what: str, tmp_path: Path) -> None:
    """Another backup, not a new directory; and nothing is made in somebody else's database."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(5)
    backup = tmp_path / "backup"
    if what == "a damaged page":
        with closing(shop.open()) as store:
            back_up(store, backup)
        content = bytearray(backup.read_bytes())
        content[40_000:60_000] = bytes(20_000)
        backup.write_bytes(content)
    else:
        with closing(sqlite3.connect(backup)) as connection:
            connection.execute("CREATE TABLE bookmarks (url)")
    content, before = bytearray(backup.read_bytes()), judgements(shop)

    with pytest.raises(CorruptError, match=r"backup (is damaged .*; name another|holds no fleet; name what)"):
        restore(shop.path, shop.config, backup, 5.0)

    assert backup.read_bytes() == content
    assert judgements(shop) == before


@pytest.mark.parametrize(
    ("content", "error"), [(None, FileUnreadableError), (b"", CorruptError), (b"x" * 9999, CorruptError)]
)
def test_what_is_no_backup_changes_nothing(
    shop: Shop, content: bytes | None, error: type[Exception], tmp_path: Path
) -> None:
    """It is named, and kept."""
    file = tmp_path / "backup"
    if content is not None:
        file.write_bytes(content)
    before = judgements(shop)

    with pytest.raises(error):
        restore(shop.path, shop.config, file, 5.0)

    assert judgements(shop) == before


def test_rollback_is_a_new_version_with_the_old_table(shop: Shop) -> None:
    """What waits is dropped, new items stay, and the next round goes on from there."""
    shop.add_item("new")
    assert shop.serve(1) == ["accepted"]
    with closing(shop.open()) as store:
        newest, old = store.load(), store.kept_table(1)
        assert old is not None
        made = roll_back(store, 1, 5.0)
        state = store.load()

        assert (made, state.version, state.rolled_back) == (5, 5, [(1, 5)])
        assert (store.pending(), store.rounds(1)[0].dropped, store.ledger().dropped) == ([], 1, 1)
        np.testing.assert_array_equal(state.table[:N_ITEMS], old.table)
        np.testing.assert_array_equal(state.table[N_ITEMS:], newest.table[N_ITEMS:])
        assert state.answered == newest.answered
    # Of each three, two are made from versions that were given up.
    assert shop.serve(10) == [*["accepted", "rejected", "rejected"] * 3, "accepted"]
    assert judgements(shop) == [(version, "proved") for version in range(1, 7)]


@pytest.mark.parametrize("version", [3, 4, 99])
def test_rollback_to_what_is_not_there_names_what_is(shop: Shop, version: int) -> None:
    """The newest is no version to return to, either."""
    with closing(shop.open()) as store, pytest.raises(ParameterError, match="versions 0 to 2 can"):
        roll_back(store, version, 5.0)


def test_versions_to_return_to_are_named_without_those_between(tmp_path: Path) -> None:
    """After a restore there is a gap of a million."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(9)
    with closing(shop.open()) as store:
        back_up(store, tmp_path / "backup")
    (shop.path / "state.sqlite3").write_bytes(b"damaged " * 4096)
    _, made = restore(shop.path, shop.config, tmp_path / "backup", 0.0)
    shop.serve(7)
    with closing(shop.open()) as store, pytest.raises(ParameterError, match=f"versions 0 to 2, {made} can"):
        roll_back(store, 7, 5.0)


def test_file_of_text_is_no_table_in_words_of_ours(tmp_path: Path) -> None:
    """Not in those of who tried to read it."""
    shop = Shop(tmp_path / "shop", a_config())
    (tmp_path / "notes").write_text("milk")
    with closing(shop.open()) as store, pytest.raises(DataError) as caught:
        import_table(store, tmp_path / "notes", 5.0)
    assert str(caught.value) == f"{tmp_path / 'notes'} is no model.npz with the arrays E and item_keys"


def test_table_goes_out_and_comes_in_by_key(shop: Shop, tmp_path: Path) -> None:
    """Rows are matched by key in any order; other rows stay; unknown keys are counted."""
    file = tmp_path / "model.npz"
    with closing(shop.open()) as store:
        before = store.load()
        file.write_bytes(table_file(before.table, before.catalogue))
        with np.load(file) as arrays:
            np.testing.assert_array_equal(arrays["E"], before.table)
            assert arrays["item_keys"].tolist() == [f"item {row}" for row in range(N_ITEMS)]
        rows = np.arange(9, dtype=np.float32).reshape(3, 3)
        np.savez(file, E=rows, item_keys=np.array(["item 4", "stranger", "item 0"]))

        done = import_table(store, file, 5.0)

        assert (done.version, done.rows, done.unknown) == (4, 2, 1)
        expected = before.table.copy()
        expected[4], expected[0] = rows[0], rows[2]
        np.testing.assert_array_equal(store.load().table, expected)
        assert len(store.pending()) == 1


@pytest.mark.parametrize(
    "arrays",
    [
        {"E": np.zeros((1, 2), np.float32), "item_keys": np.array(["item 0"])},
        {"E": np.zeros((1, 3), np.float64), "item_keys": np.array(["item 0"])},
        {"E": np.full((1, 3), np.nan, np.float32), "item_keys": np.array(["item 0"])},
        {"E": np.zeros((1, 3), np.float32), "item_keys": np.array(["stranger"])},
        {"E": np.zeros((2, 3), np.float32), "item_keys": np.array(["item 0"])},
        {"E": np.zeros((1, 3), np.float32)},
    ],
)
def test_table_that_does_not_fit_changes_nothing(
    shop: Shop, arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], tmp_path: Path
) -> None:
    """It is refused by name."""
    file = tmp_path / "model.npz"
    np.savez(file, **arrays)

    with closing(shop.open()) as store:
        with pytest.raises(DataError):
            import_table(store, file, 5.0)
        assert store.load().version == 3


def test_commands_say_what_they_did(tmp_path: Path, call: Call) -> None:
    """One after the other, as an operator calls them."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(9)
    where = ("--dir", shop.path)

    said = [
        call("fsck", *where),
        call("backup", *where, tmp_path / "b"),
        call("rollback", *where, 1),
        call("export", *where, "--table", tmp_path / "m.npz", "--rounds", tmp_path / "r.jsonl"),
        call("import", *where, tmp_path / "m.npz"),
        call("restore", *where, tmp_path / "b", "--yes"),
        call("fsck", *where),
    ]

    assert [outcome.code for outcome in said] == [0] * len(said)
    assert "2 versions proved" in said[0].stderr
    assert "version 3 has the table of version 1" in said[2].stderr
    assert "version 4 has 6 rows" in said[4].stderr
    assert "is version 5 now" in said[5].stderr
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["version"], line["kind"]) for line in lines] == [
        (1, "round"),
        (2, "round"),
        (3, "rollback"),
    ]


def test_store_that_is_served_is_left_alone(tmp_path: Path, call: Call) -> None:
    """What would change it under the service's feet is refused."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(5)
    with exclusive(shop.path):
        for command in (("rollback", 0), ("import", tmp_path / "m"), ("restore", tmp_path / "b", "--yes")):
            assert call(command[0], "--dir", shop.path, *command[1:]).code == ExitCode.IN_USE


def test_fsck_of_a_changed_journal_ends_with_its_code(tmp_path: Path, call: Call) -> None:
    """And names the version."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(9)
    with closing(sqlite3.connect(shop.path / "state.sqlite3")) as connection, connection:
        connection.execute("UPDATE journal SET staleness = staleness + 1 WHERE version = 2")

    outcome = call("fsck", "--dir", shop.path)

    assert outcome.code == ExitCode.CORRUPT
    assert "version 2: made anew" in outcome.stderr


@pytest.mark.postgres
def test_nothing_is_restored_over_a_fleet_that_another_machine_serves(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its directory is another, so the directory's lock says nothing; the database's does."""
    shop = Shop(tmp_path / "shop", AggregatorConfig(fleet="shop", store=cluster.new_store(), buffer=4))
    shop.serve(4)
    with closing(shop.open()) as store:
        back_up(store, tmp_path / "backup")
    shop.serve(4)

    with closing(shop.open()) as elsewhere, serving(elsewhere):
        with pytest.raises(InUseError, match="served by another process"):
            restore(shop.path, shop.config, tmp_path / "backup", 5.0)
        assert elsewhere.load().version == 2

    assert restore(shop.path, shop.config, tmp_path / "backup", 5.0) == (1, 3)


def test_what_killed_ones_have_left_is_cleared_by_the_next(tmp_path: Path, call: Call) -> None:
    """A copy of a fleet's store each time; but not what another process works on, or has by another name."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(5)
    folder = tmp_path / "backups [1]"
    folder.mkdir()
    killed = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    gone, alive = int(killed.stdout), os.getppid()
    others = [
        f".monday.{alive}",
        f".monday.{alive}-wal",
        f".tuesday.{gone}",
        f".monday.{gone}.old",
        ".monday.x",
    ]
    left = [f".monday.{pid}{suffix}" for pid in (gone, os.getpid()) for suffix in ("", "-wal", "-shm")]
    for name in (*others, *left):
        (folder / name).write_bytes(b"half")
    half = shop.path / ".restore-abcd1234"
    half.mkdir()
    (half / "state.sqlite3").write_bytes(b"half")

    assert call("backup", "--dir", shop.path, folder / "monday").code == ExitCode.OK
    assert {path.name for path in folder.iterdir()} == {"monday", *others}

    with exclusive(shop.path):
        restoring = ("restore", "--dir", shop.path, "--yes", folder / "monday")
        assert call(*restoring).code == ExitCode.IN_USE
    assert half.exists()
    assert call(*restoring).code == ExitCode.OK
    assert not half.exists()


def test_backup_of_a_damaged_store_names_the_store(tmp_path: Path, call: Call) -> None:
    """Not a file of its own, which is gone when the sentence is read."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(25)
    own = shop.path / "state.sqlite3"
    content = bytearray(own.read_bytes())
    content[40_960:-8_192] = bytes(len(content) - 49_152)
    own.write_bytes(content)

    outcome = call("backup", "--dir", shop.path, tmp_path / "backup")

    assert outcome.code == ExitCode.CORRUPT
    assert f"{own} is damaged" in outcome.sentence
    assert ".backup." not in outcome.sentence
    assert [path.name for path in tmp_path.glob("*backup*")] == []


@pytest.mark.parametrize(
    ("n_updates", "version", "said"),
    [
        (1, 0, "version 0 cannot be returned to; it is the only one that is kept"),
        (1, 7, "version 7 cannot be returned to; version 0 is the only one that is kept"),
        (5, 1, "version 1 cannot be returned to; version 0 can"),
        (9, 7, "version 7 cannot be returned to; versions 0 to 1 can"),
    ],
)
def test_versions_to_return_to_are_counted(
    n_updates: int, version: int, said: str, tmp_path: Path, call: Call
) -> None:
    """The newest is none of them, and one is not many."""
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(n_updates)

    outcome = call("rollback", "--dir", shop.path, version)

    assert (outcome.code, outcome.sentence) == (ExitCode.USAGE, f"edge-aggregator: {said}")


@pytest.mark.parametrize(
    "command",
    [("status",), ("doctor",), ("start",), ("restore", "--yes", "b"), ("backup", "b")],
    ids=" ".join,
)
def test_lost_settings_beside_a_fleet_are_put_back_and_not_made(
    command: tuple[str, ...], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` would refuse that directory: whoever is sent there comes back with nothing."""
    monkeypatch.chdir(tmp_path)
    shop = Shop(tmp_path / "shop", a_config())
    shop.serve(5)
    (shop.path / "config.toml").unlink()

    outcome = call(*command, "--dir", shop.path)

    assert outcome.code == ExitCode.NOT_INITIALISED
    assert "put config.toml back from a copy, or init another directory" in outcome.sentence
    assert f"init --dir {shop.path}" not in outcome.sentence


@pytest.mark.parametrize("saved", [DUMPS[0], DUMPS[-2]], ids=lambda saved: saved.stem)
def test_restore_that_is_refused_leaves_an_earlier_releases_store(
    saved: Path, tmp_path: Path, call: Call
) -> None:
    """It says that nothing was changed, and the way back to that release stays open."""
    shop, other, backup = (
        Shop(tmp_path / "shop", a_config()),
        Shop(tmp_path / "o", a_config()),
        tmp_path / "b",
    )
    assert call("backup", "--dir", other.path, backup).code == ExitCode.OK
    database = shop.path / "state.sqlite3"
    database.unlink()
    restore_dump(saved.read_text(), database)
    before = dump(database)

    outcome = call("restore", "--dir", shop.path, "--yes", backup)

    assert (outcome.code, "nothing was changed" in outcome.sentence) == (ExitCode.USAGE, True)
    assert dump(database) == before
    assert call("restore", "--dir", shop.path, "--yes", "--another-fleet", backup).code == ExitCode.OK
    assert len(list(shop.path.glob("state.sqlite3.replaced-*"))) == 1
