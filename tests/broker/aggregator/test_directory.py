"""Making and opening an aggregator's directory: whole, or as if nothing had happened."""

import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from broker.aggregator.catalogue_changes import CatalogueChange
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import (
    CONFIG_NAME,
    DATABASE_NAME,
    initialise,
    load_config,
    open_store,
)
from broker.aggregator.store.interface import Decree
from broker.errors import (
    AlreadyInitialisedError,
    CorruptError,
    FileUnreadableError,
    NotInitialisedError,
    NotWritableError,
)
from broker.storage import connect_sqlite
from trainer.errors import DataFormatError, ParameterError
from trainer.params import initial_score_function, initial_table

CONFIG = AggregatorConfig(fleet="shop", buffer=5)


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Give a file of three items."""
    path = tmp_path / "items.txt"
    path.write_text("a\nb\nc\n")
    return path


def make(path: Path, items: Path, *, dim: int = 4, seed: int | None = 7) -> int:
    """Set a directory up."""
    return initialise(path, CONFIG, items, dim=dim, seed=seed, created_at=1_000.0)


def everything_in(path: Path) -> dict[str, bytes]:
    """Give the contents of all files below a directory."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_new_directory_has_the_configuration_and_version_zero(tmp_path: Path, items: Path) -> None:
    """`init` writes what `start` needs, parents included."""
    path = tmp_path / "deep" / "shop"

    assert make(path, items) == 3

    assert sorted(file.name for file in path.iterdir()) == [CONFIG_NAME, "lock", DATABASE_NAME]
    assert load_config(path, {}) == CONFIG
    store = open_store(path)
    try:
        state = store.load()
        assert (state.version, state.table.shape) == (0, (3, 4))
        assert 0 <= state.instance < 2**53
        assert store.item_keys() == ("a", "b", "c")
    finally:
        store.close()


def test_seed_decides_the_first_table_and_score_function(tmp_path: Path, items: Path) -> None:
    """The same seed gives the same beginning; the instance is drawn all the same."""
    rng = np.random.default_rng(7)
    instances = set()
    for name in ("one", "two"):
        make(tmp_path / name, items)
        store = open_store(tmp_path / name)
        state, start = store.load(), store.start()
        store.close()
        instances.add(state.instance)
        np.testing.assert_array_equal(state.table, initial_table(3, 4, np.random.default_rng(7)))
    initial_table(3, 4, rng)
    np.testing.assert_array_equal(start.w, initial_score_function(4, rng).w)
    assert len(instances) == 2


def test_configuration_can_be_read_by_its_owner_only(tmp_path: Path, items: Path) -> None:
    """It may come to hold the broker's password."""
    make(tmp_path / "shop", items)

    assert stat.S_IMODE((tmp_path / "shop" / CONFIG_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"a\na\n", DataFormatError), (b"", DataFormatError), (None, FileUnreadableError)],
    ids=["repeated key", "empty", "missing"],
)
def test_wrong_item_file_makes_nothing(tmp_path: Path, content: bytes | None, error: type[Exception]) -> None:
    """The catalogue is checked before the directory is made."""
    items = tmp_path / "items.txt"
    if content is not None:
        items.write_bytes(content)

    with pytest.raises(error, match=r"items\.txt"):
        make(tmp_path / "shop", items)

    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize("dim", [0, 1025])
def test_dim_out_of_range_makes_nothing(tmp_path: Path, items: Path, dim: int) -> None:
    """So is the table's width."""
    with pytest.raises(ParameterError, match="dim"):
        make(tmp_path / "shop", items, dim=dim)

    assert not (tmp_path / "shop").exists()


def test_table_too_large_to_be_sent_makes_nothing(tmp_path: Path) -> None:
    """A table that no head can announce is refused by `init`, not by `start`."""
    items = tmp_path / "items.txt"
    items.write_text("\n".join(map(str, range(270_000))))

    with pytest.raises(ParameterError, match="270000 items of 1024 dimensions"):
        make(tmp_path / "shop", items, dim=1024)

    assert not (tmp_path / "shop").exists()


def test_second_init_is_refused_and_changes_nothing(tmp_path: Path, items: Path) -> None:
    """A fleet's versions are not thrown away by a repeated command."""
    path = tmp_path / "shop"
    make(path, items)
    before = everything_in(path)

    with pytest.raises(AlreadyInitialisedError, match=r"edge-aggregator start --dir"):
        make(path, items, dim=9, seed=8)

    assert everything_in(path) == before


def test_init_after_a_half_made_directory_begins_again(
    tmp_path: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that died before the configuration was written left a directory that counts as not made."""
    path = tmp_path / "shop"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("broker.aggregator.directory.write_atomically", die)
        with pytest.raises(KeyboardInterrupt):
            make(path, items, seed=1)
    assert (path / DATABASE_NAME).exists()
    with pytest.raises(NotInitialisedError):
        load_config(path, {})
    with pytest.raises(NotInitialisedError):
        open_store(path)

    assert make(path, items) == 3

    store = open_store(path)
    np.testing.assert_array_equal(store.load().table, initial_table(3, 4, np.random.default_rng(7)))
    store.close()


@pytest.mark.parametrize("left", [b"", None], ids=["empty", "made, without a table"])
def test_init_over_what_an_earlier_one_left_begins_again(
    tmp_path: Path, items: Path, left: bytes | None
) -> None:
    """Wherever it was cut off; other files of the directory stay."""
    path = tmp_path / "shop"
    path.mkdir()
    if left is None:
        connect_sqlite(path / DATABASE_NAME).close()
        assert (path / DATABASE_NAME).stat().st_size > 0
    else:
        (path / DATABASE_NAME).write_bytes(left)
        (path / f"{DATABASE_NAME}-wal").write_bytes(b"half a log")
    others = {"notes.txt": b"mine", f"{DATABASE_NAME}.damaged-20260101T000000Z": b"a table"}
    for name, content in others.items():
        (path / name).write_bytes(content)

    make(path, items)

    assert everything_in(path).items() >= others.items()
    open_store(path).close()


@pytest.mark.parametrize("what", ["served", "a new version", "a queued change", "damaged"])
def test_init_keeps_a_store_whose_configuration_was_lost(tmp_path: Path, items: Path, what: str) -> None:
    """A fleet's table is not thrown away for a missing text file, nor what was put aside."""
    path = tmp_path / "shop"
    make(path, items)
    with closing(open_store(path)) as store:
        if what == "served":
            store.next_session()
        elif what == "a new version":
            kept = store.kept_table(0)
            assert kept is not None
            store.decree(Decree(version=1, kind="import", kept=kept, decreed_at=0.0))
        elif what == "a queued change":
            store.queue_change(CatalogueChange(kind="add", items=(("d",),), source="x", lines=(1,)), 0.0)
    if what == "damaged":
        (path / DATABASE_NAME).write_bytes(b"damaged " * 4096)
    (path / f"{DATABASE_NAME}.damaged-20260101T000000Z").write_bytes(b"a table")
    (path / CONFIG_NAME).unlink()
    before = everything_in(path)

    with pytest.raises(AlreadyInitialisedError, match=r"state\.sqlite3 .*; put config\.toml back"):
        make(path, items)

    assert everything_in(path) == before


def test_path_below_a_file_cannot_be_made(tmp_path: Path, items: Path) -> None:
    """Where no directory can be, the sentence says so."""
    with pytest.raises(NotWritableError, match="choose another directory"):
        make(items / "shop", items)


@pytest.mark.parametrize("open_it", [lambda path: load_config(path, {}), open_store], ids=["config", "store"])
def test_directory_that_was_never_made_names_the_command(tmp_path: Path, open_it: object) -> None:
    """Whoever forgot `init` is told how to call it."""
    assert callable(open_it)
    with pytest.raises(NotInitialisedError, match=r"edge-aggregator init --dir .* --fleet NAME --items FILE"):
        open_it(tmp_path / "nowhere")

    assert not (tmp_path / "nowhere").exists()


def test_directory_without_its_database_is_not_opened(tmp_path: Path, items: Path) -> None:
    """A lost database is not silently replaced by an empty one."""
    path = tmp_path / "shop"
    make(path, items)
    (path / DATABASE_NAME).unlink()

    with pytest.raises(CorruptError, match=DATABASE_NAME):
        open_store(path)

    assert not (path / DATABASE_NAME).exists()


def test_directory_with_an_emptied_database_is_corrupt(tmp_path: Path, items: Path) -> None:
    """A database that was cut to nothing is named before anything is served."""
    path = tmp_path / "shop"
    make(path, items)
    (path / DATABASE_NAME).write_bytes(b"")

    with pytest.raises(CorruptError, match="missing or empty"):
        open_store(path)

    assert (path / DATABASE_NAME).read_bytes() == b""
