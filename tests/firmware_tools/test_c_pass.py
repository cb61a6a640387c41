"""The C core's local pass: the trainer's, from the same random stream; and the update that tells of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.protocol import messages
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Update
from edge.scorer import top_k
from firmware_tools import arithmetic
from tests.firmware_tools import core
from tests.firmware_tools.core import Pass, needs_compiler
from trainer.integers import QuantisedTable, quantise_table
from trainer.local import LocalResult, local_pass
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler

pytestmark = [needs_compiler, pytest.mark.usefixtures("core_library")]

ENCODED = ["float32", "int8", "int4", "factored", "factored-int8"]
DEVICE = Hyperparameters(lr=0.1, item_lr=13455.9, negatives=8, batch_size=256, decay=0.1)
PAPER = Hyperparameters(lr=0.1, item_lr=13455.9, negatives=4, batch_size=256)


def _start(n_items: int, dim: int, scale: float, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((n_items, dim), dtype=np.float32) * np.float32(scale)
    return table, rng.uniform(-1, 1, dim).astype(np.float32) / np.float32(np.sqrt(dim))


def _python_pass(
    table: Floats,
    w: Floats,
    b: float,
    positives: Rows,
    excluded: Rows,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> LocalResult:
    sampler = NegativeSampler.excluding(len(table), excluded)
    return local_pass(table, ScoreFunction(w=w, b=b), positives, sampler, hyperparameters, rng)


@settings(max_examples=core.examples(40))
@given(seed=st.integers(0, 2**64 - 1), bounds=st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=40))
def test_random_stream_is_numpys(seed: int, bounds: list[int]) -> None:
    """PCG64's words, and integers below a bound as negatives are drawn."""
    limits = core.u32(bounds)
    scaled, whole = np.empty_like(limits), np.empty(limits.size, dtype=np.uint64)
    words = core.words_of(seed)
    core.library().shim_random(
        core.pointer(words), limits.size, core.pointer(limits), core.pointer(scaled), core.pointer(whole)
    )

    rng = np.random.default_rng(seed)
    for nth, bound in enumerate(bounds):
        assert rng.bit_generator.random_raw() == whole[nth]
        assert int(rng.random() * bound) == scaled[nth]


@pytest.mark.parametrize("count", [1, 2, 3, 17, 900, 70_000])
def test_shuffling_is_numpys(count: int) -> None:
    """Which may change with a release of numpy: then this test says so."""
    found, words = np.empty(count, dtype=np.uint32), core.words_of(count)
    core.library().shim_shuffle(core.pointer(words), count, core.pointer(found))
    assert np.array_equal(found, np.random.default_rng(count).permutation(count))


@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize(
    ("hyperparameters", "scale", "n_positives"),
    [(DEVICE, 0.1, 100), (PAPER, 1.0, 100), (DEVICE, 0.1, 7), (PAPER, 1.0, 51)],
    ids=["device", "paper", "device, one batch", "paper, one batch"],
)
def test_ten_passes_are_the_trainers(
    hyperparameters: Hyperparameters, scale: float, n_positives: int, form: str
) -> None:
    """W, b, rows and their changes within 1e-5 after ten passes from the same stream."""
    table, w = _start(1682, 32, scale, 5)
    used = quantise_table(table) if form == "int8" else table
    floats = used.dequantised() if isinstance(used, QuantisedTable) else table
    rng = np.random.default_rng(11)
    positives = rng.permutation(1682)[:n_positives].astype(np.int64)
    excluded = np.union1d(positives, [3, 99, 1681])
    samples = n_positives * (1 + hyperparameters.negatives)
    board = Pass(w, 0.1, samples, -(-samples // hyperparameters.batch_size), seed=12)
    stream = np.random.default_rng(12)
    expected_w, expected_b = w, 0.1

    for _ in range(10):
        result = _python_pass(floats, expected_w, expected_b, positives, excluded, hyperparameters, stream)
        expected_w, expected_b = result.score_function.w, result.score_function.b
        assert board.run(used, positives, excluded, hyperparameters) == core.OK

    np.testing.assert_allclose(board.w, expected_w, rtol=0, atol=1e-5)
    assert board.b == pytest.approx(expected_b, abs=1e-5)
    rows, changes = board.changes()
    assert rows.tolist() == result.rows.tolist()
    # Steps of the rows are thousands of times larger than those of w: to 1e-5 of the largest.
    assert np.abs(changes - result.change).max() <= 1e-5 * max(1.0, np.abs(result.change).max())


@settings(max_examples=core.examples(80))
@given(
    n_items=st.integers(2, 60),
    dim=st.integers(1, 9),
    batch_size=st.sampled_from([1, 2, 5, 16, 1000]),
    negatives=st.integers(1, 6),
    share=st.floats(0.05, 0.9),
    decay=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1 << 20),
)
def test_any_pass_is_the_trainers(
    n_items: int, dim: int, batch_size: int, negatives: int, share: float, decay: float, seed: int
) -> None:
    """Small catalogues, where a row has many samples, in any number of batches."""
    table, w = _start(n_items, dim, 1.0, seed)
    n_positives = max(1, min(n_items - 1, int(share * n_items)))
    positives = np.random.default_rng(seed).permutation(n_items)[:n_positives].astype(np.int64)
    hyperparameters = Hyperparameters(
        lr=0.1, item_lr=2.0, negatives=negatives, batch_size=batch_size, decay=decay
    )
    samples = n_positives * (1 + negatives)
    board = Pass(w, -0.3, samples, -(-samples // batch_size), seed=seed)

    assert board.run(table, positives, np.sort(positives), hyperparameters) == core.OK

    result = _python_pass(table, w, -0.3, positives, positives, hyperparameters, np.random.default_rng(seed))
    rows, changes = board.changes()
    assert rows.tolist() == result.rows.tolist()
    np.testing.assert_allclose(changes, result.change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(board.w, result.score_function.w, atol=1e-5)
    assert board.b == pytest.approx(result.score_function.b, abs=1e-5)


def test_own_view_ranks_as_the_trainers_rows_do() -> None:
    """The ten best of the table with the pass laid over it, without a copy of a row."""
    table, w = _start(400, 16, 1.0, 2)
    positives = np.arange(3, 90, 4)
    board = Pass(w, 0.0, 200, 40, seed=1)
    hyperparameters = Hyperparameters(lr=0.1, item_lr=50.0, negatives=4, batch_size=32)
    assert board.run(table, positives, positives, hyperparameters) == core.OK

    best, _ = core.recommend(table, 10, w=board.w, b=board.b, own=board, masked=positives)

    result = _python_pass(table, w, 0.0, positives, positives, hyperparameters, np.random.default_rng(1))
    own = table.copy()
    own[result.rows] = result.values
    assert best.tolist() == top_k(own @ result.score_function.w, 10, positives).tolist()
    plain, _ = core.recommend(table, 10, w=board.w, b=board.b, masked=positives)
    assert best.tolist() != plain.tolist()


def _trained(n_items: int = 300, dim: int = 12, *, item_lr: float = 60.0, seed: int = 4) -> Pass:
    table, w = _start(n_items, dim, 1.0, seed)
    positives = np.arange(1, n_items, 11)
    board = Pass(w, 0.0, positives.size * 5, 8, seed=seed)
    hyperparameters = Hyperparameters(lr=0.1, item_lr=item_lr, negatives=4, batch_size=48)
    assert board.run(table, positives, positives, hyperparameters) == core.OK
    return board


@pytest.mark.parametrize("dim", [12, 13])
@pytest.mark.parametrize("encoding", ENCODED)
def test_update_is_byte_for_byte_that_of_a_device(encoding: str, dim: int) -> None:
    """The same change, encoded here and there; numbers of all lengths in the envelope."""
    board = _trained(dim=dim)
    rows, changes = board.changes()
    change = board.factors() if "factored" in encoding else SparseChange(rows=rows, change=changes)
    for number in (1, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**53):
        status, payload = board.update(
            encoding=encoding, instance=number, incarnation=2**64 - number, seq=number, base_version=number
        )
        assert status == core.OK
        assert payload == messages.encode(
            Update(
                instance=number,
                incarnation=2**64 - number,
                seq=number,
                base_version=number,
                encoding=encoding,
                body=ENCODINGS[encoding].encode(change),
            )
        )


def test_update_of_rows_without_a_change_is_a_devices_too() -> None:
    """Without a step of the rows every scale is 0, and so is every value."""
    board = _trained(item_lr=0.0)
    rows, changes = board.changes()
    assert not changes.any()
    for encoding in ENCODED:
        _, payload = board.update(encoding=encoding)
        decoded = ENCODINGS[encoding].decode(messages.decode(payload, Update).body, 300, 12)
        assert decoded.rows.tolist() == rows.tolist()
        assert not decoded.change.any()


@pytest.mark.parametrize(("factored", "by_rows"), [("factored", "float32"), ("factored-int8", "int8")])
def test_more_batches_than_a_reader_allows_are_sent_by_rows(factored: str, by_rows: str) -> None:
    """A row could be in each of them."""
    table, w = _start(40, 4, 1.0, 0)
    board = Pass(w, 0.0, 100, 100)
    hyperparameters = Hyperparameters(item_lr=1.0, negatives=4, batch_size=1)
    assert board.run(table, range(1, 21), range(1, 21), hyperparameters) == core.OK
    assert board.update(encoding=factored) == board.update(encoding=by_rows)
    hyperparameters = Hyperparameters(item_lr=1.0, negatives=4, batch_size=2)
    assert board.run(table, range(1, 21), range(1, 21), hyperparameters) == core.OK
    payload = board.update(encoding=factored)[1]
    assert messages.decode(payload, Update).encoding == factored
    ENCODINGS[factored].decode(messages.decode(payload, Update).body, 40, 4)


def test_rows_far_apart_have_longer_distances() -> None:
    """Of one to four bytes; the table is 8-bit, as nobody reads it whole."""
    rows = 3_000_000
    table = QuantisedTable(
        values=np.ones((rows, 1), dtype=np.int8),
        multipliers=np.ones(rows, dtype=np.uint16),
        unit=np.float32(1.0),
    )
    board = Pass(np.ones(1, dtype=np.float32), 0.0, 20, 1)
    positives = [5, 6, 200, 20_000, 2_999_999]
    settings_ = Hyperparameters(item_lr=1.0, negatives=1, batch_size=20)
    assert board.run(table, positives, positives, settings_) == core.OK
    _, payload = board.update(encoding="factored")
    decoded = ENCODINGS["factored"].decode(messages.decode(payload, Update).body, rows, 1)
    assert decoded.rows.tolist() == board.changes()[0].tolist()


def test_update_that_does_not_fit_is_refused() -> None:
    """By the buffer, one byte short; nothing is written past its end."""
    board = _trained()
    _, payload = board.update(encoding="int8")
    status, part = board.update(encoding="int8", room=len(payload) - 1)
    assert status == core.SINK
    assert payload.startswith(part)
    assert board.update(seq=0)[0] == core.ARGUMENT
    assert board.update(seq=2**53 + 1)[0] == core.ARGUMENT
    assert board.update(base_version=2**53 + 1)[0] == core.ARGUMENT


def test_pass_that_diverges_leaves_the_user_as_before() -> None:
    """An infinite change is no update, and no w."""
    table, w = _start(50, 4, 1.0, 0)
    board = Pass(w, 0.5, 100, 20)
    wild = Hyperparameters(lr=1e9, item_lr=1e9, negatives=4, batch_size=5)

    assert board.run(np.float32(1e25) * table, [1, 2, 3], [1, 2, 3], wild) == core.NOT_FINITE

    assert board.w.tobytes() == w.tobytes()
    assert board.b == 0.5
    assert board.update()[0] == core.NOTHING


def test_change_beyond_1e30_is_not_sent() -> None:
    """As a device refuses it."""
    table, w = _start(50, 4, 1.0, 0)
    board = Pass(np.float32(1e28) * w, 0.0, 100, 20)
    settings_ = Hyperparameters(lr=0.0, item_lr=1e9, negatives=4, batch_size=50)
    assert board.run(table, [1, 2, 3], [1, 2, 3], settings_) == core.OK
    for encoding in ENCODED:
        status, payload = board.update(encoding=encoding)
        assert (status, payload) == (core.NOT_FINITE, b"")


@pytest.mark.parametrize(
    ("positives", "excluded", "status"),
    [
        ([], [], core.NOTHING),
        ([1], range(50), core.NOTHING),
        ([50], [1], core.ARGUMENT),
        ([1], [50], core.ARGUMENT),
        ([1], [2, 1], core.ARGUMENT),
        ([1], [1, 1], core.ARGUMENT),
        ([1, 1], [1], core.ARGUMENT),
        (range(21), [1], core.ROOM),
    ],
    ids=str,
)
def test_wrong_interactions_are_refused(positives: list[int], excluded: list[int], status: int) -> None:
    """Each with its status, and the user stays."""
    table, w = _start(50, 4, 1.0, 0)
    board = Pass(w, 0.0, 100, 1)
    hyperparameters = Hyperparameters(negatives=4, batch_size=100)
    assert board.run(table, list(positives), list(excluded), hyperparameters) == status
    assert board.w.tobytes() == w.tobytes()
    assert core.library().shim_status_text(status).isascii()


def test_more_batches_than_room_are_refused() -> None:
    """Three batches where there is room for two."""
    table, w = _start(50, 4, 1.0, 0)
    board = Pass(w, 0.0, 100, 2)
    assert board.run(table, [1, 2, 3], [1, 2, 3], Hyperparameters(negatives=4, batch_size=6)) == core.ROOM


def test_integer_scores_rank_as_the_table_nearly() -> None:
    """What 8 bits cost on random rows: of the ten best nine and a half are the same ones."""
    table, _ = _start(1000, 32, 1.0, 0)
    quantised = quantise_table(table)
    rng = np.random.default_rng(0)
    same = 0
    for _ in range(100):
        w = rng.standard_normal(32, dtype=np.float32)
        vector, _scale = arithmetic.quantise_vector(w)
        scores = arithmetic.integer_scores(quantised, vector)
        same += np.intersect1d(
            arithmetic.best_rows(scores, 10), top_k(table @ w, 10, np.empty(0, np.int64))
        ).size
    assert same >= 950
