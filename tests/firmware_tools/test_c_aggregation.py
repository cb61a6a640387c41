"""Updates that the C core encodes, at the aggregator: they move the table as a device's do."""

import numpy as np
import pytest

from broker.aggregator.decisions import ReplyReceipt, RoundSettings
from broker.protocol import messages
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Update
from tests.broker.aggregator.builders import INSTANCE, a_core
from tests.firmware_tools.core import OK, Pass, needs_compiler
from trainer.local import local_pass
from trainer.params import Hyperparameters, ScoreFunction
from trainer.sampling import NegativeSampler

pytestmark = [needs_compiler, pytest.mark.usefixtures("core_library")]


@pytest.mark.parametrize("encoding", ["float32", "int8", "int4", "factored", "factored-int8"])
def test_update_moves_the_table_as_that_of_a_device(encoding: str) -> None:
    """Bit for bit, of the same change; and within 1e-5 of a device's that trains by itself."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((500, 32), dtype=np.float32)
    w = rng.standard_normal(32, dtype=np.float32) / np.float32(6.0)
    positives = np.arange(5, 500, 13)
    hyperparameters = Hyperparameters(lr=0.1, item_lr=300.0, negatives=4, batch_size=64)
    board = Pass(w, 0.0, positives.size * 5, 4, seed=9)
    assert board.run(table, positives, positives, hyperparameters) == OK
    rows, change = board.changes()
    made = board.factors() if "factored" in encoding else SparseChange(rows=rows, change=change)
    body = ENCODINGS[encoding].encode(made)
    device = Update(instance=INSTANCE, incarnation=8, seq=1, base_version=0, encoding=encoding, body=body)
    status, payload = board.update(encoding=encoding, instance=INSTANCE, base_version=0)
    assert status == OK

    moved = []
    for content in (payload, messages.encode(device)):
        core = a_core(RoundSettings(buffer=1), table=table.copy())
        update = messages.decode(content, Update)
        commands = core.update_received("board", update, content, 0.0)
        (receipt,) = [command.receipt for command in commands if isinstance(command, ReplyReceipt)]
        assert receipt.verdict == "accepted"
        assert core.version == 1
        again = core.update_received("board", update, content, 0.0)
        assert [c.receipt.verdict for c in again if isinstance(c, ReplyReceipt)] == ["duplicate"]
        moved.append(core.table)

    assert moved[0].tobytes() == moved[1].tobytes()
    assert moved[0].tobytes() != table.tobytes()
    if encoding in ("float32", "factored"):
        sampler = NegativeSampler.excluding(500, positives)
        start = ScoreFunction(w=w, b=0.0)
        result = local_pass(table, start, positives, sampler, hyperparameters, np.random.default_rng(9))
        np.testing.assert_allclose(moved[0][result.rows], result.values, rtol=0, atol=1e-5)
