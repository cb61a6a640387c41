"""A virtual device: what it trains from, what it sends, and that its seed decides everything."""

import numpy as np
import pytest

from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Head, Update
from edge.fleet.device import ID_PREFIX, VirtualDevice
from edge.fleet.scenario import Scenario
from edge.scheduler import Progress
from edge.session import Fetch, PublishStatus, PublishUpdate, Subscribe, Train
from tests.fleet.builders import a_head, a_scenario, a_table
from trainer.errors import ParameterError
from trainer.local import local_pass
from trainer.params import Floats, ScoreFunction


def a_device(scenario: Scenario, index: int = 2, seed: int = 9) -> VirtualDevice:
    """Give a device without a table."""
    return VirtualDevice(scenario, index, seed)


def holding(device: VirtualDevice, head: Head, table: Floats) -> VirtualDevice:
    """Put a table on a device."""
    device.hold(head, table)
    return device


def contributing(seq: int = 1) -> Train:
    """Give the command to make an update."""
    return Train(seq, Progress())


def the_update(device: VirtualDevice, seq: int = 1) -> Update:
    """Let a device make an update and give it."""
    update = device.train(contributing(seq))
    assert update is not None
    return update


# -- what a pass does ------------------------------------------------------------------------------


def test_device_without_a_table_cannot_train() -> None:
    """It is a mistake of whoever asks."""
    with pytest.raises(RuntimeError, match="without a table"):
        a_device(a_scenario()).train(contributing())


def test_pass_is_that_of_the_trainer_with_the_devices_own_stream() -> None:
    """The same positives, plan and draws: the same result to the last bit."""
    scenario = a_scenario()
    table = a_table(scenario)
    head = a_head(table)
    rng = np.random.default_rng([9, 3, 2])
    rng.integers(1, 2**53)
    start = ScoreFunction(w=head.w, b=head.b)
    expected = local_pass(
        table, start, scenario.split.train[2], scenario.sampler(2), head.plan.hyperparameters, rng
    )

    update = the_update(holding(a_device(scenario), head, table))

    change = ENCODINGS["float32"].decode(update.body, *table.shape)
    assert change.rows.tolist() == expected.rows.tolist()
    assert np.array_equal(change.change, expected.change)


def test_next_pass_begins_with_the_devices_own_score_function() -> None:
    """The item view begins anew from the table; the score function goes on."""
    scenario = a_scenario()
    table = a_table(scenario)
    device = holding(a_device(scenario), a_head(table), table)
    first = the_update(device)
    after_first = device.result
    device.settle()
    device.hold(a_head(table, version=1), table)

    second = the_update(device, 2)

    assert after_first is not None
    assert device.result is not None
    assert not np.array_equal(device.result.score_function.w, after_first.score_function.w)
    assert (first.seq, first.base_version) == (1, 0)
    assert (second.seq, second.base_version) == (2, 1)
    assert first.incarnation == second.incarnation == device.incarnation


def test_update_waits_in_the_outbox_until_it_is_settled() -> None:
    """There is one at most; each is counted."""
    scenario = a_scenario()
    table = a_table(scenario)
    device = holding(a_device(scenario), a_head(table), table)
    assert (device.outbox, device.updates_made) == (None, 0)

    update = the_update(device)

    assert (device.outbox, device.updates_made) == (update, 1)
    device.settle()
    assert (device.outbox, device.updates_made) == (None, 1)


def test_local_pass_makes_no_update() -> None:
    """It renews the user's own state only."""
    scenario = a_scenario()
    table = a_table(scenario)
    device = holding(a_device(scenario), a_head(table), table)

    assert device.train(Train(None, Progress())) is None

    assert device.result is not None
    assert device.updates_made == 0


def test_plan_decides_encoding_and_hyperparameters() -> None:
    """A new head's plan is followed at once."""
    scenario = a_scenario()
    table = a_table(scenario)
    device = holding(a_device(scenario), a_head(table, encoding="int8", negatives=1), table)
    few = the_update(device)
    device.hold(a_head(table, version=1, negatives=9), table)

    many = the_update(device, 2)

    assert (few.encoding, many.encoding) == ("int8", "float32")
    assert few.body["rows"].size < many.body["rows"].size


def test_pass_does_not_change_the_shared_table() -> None:
    """Many devices hold the same array."""
    scenario = a_scenario()
    table = a_table(scenario)
    table.flags.writeable = False
    device = holding(a_device(scenario), a_head(table), table)

    the_update(device)

    assert device.table is table


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_training_that_diverges_is_named() -> None:
    """The option to change is in the sentence."""
    scenario = a_scenario()
    table = np.full_like(a_table(scenario), 1e28)
    device = holding(a_device(scenario), a_head(table, item_lr=1e9), table)

    with pytest.raises(ParameterError, match=r"the training diverges .* give a smaller --item-lr"):
        device.train(contributing())

    assert (device.outbox, device.updates_made) == (None, 0)


# -- what it is ------------------------------------------------------------------------------------


def test_devices_of_a_fleet_are_told_apart() -> None:
    """By name and by incarnation; names sort in the order of the users."""
    scenario = a_scenario()
    devices = [VirtualDevice(scenario, user, 0) for user in range(scenario.n_users)]

    names = [device.name for device in devices]
    assert names == sorted(set(names))
    assert all(name.startswith(ID_PREFIX) for name in names)
    assert len({device.incarnation for device in devices}) == len(devices)


def test_seed_decides_everything_a_device_draws() -> None:
    """The same seed makes the same device; another one another."""
    scenario = a_scenario()
    table = a_table(scenario)
    same, again, other = (holding(a_device(scenario, seed=s), a_head(table), table) for s in (1, 1, 2))
    for device in (same, again, other):
        the_update(device)

    assert same.incarnation == again.incarnation != other.incarnation
    assert same.result is not None
    assert again.result is not None
    assert other.result is not None
    assert np.array_equal(same.result.change, again.result.change)
    assert same.result.change.shape != other.result.change.shape or not np.array_equal(
        same.result.change, other.result.change
    )


def test_session_knows_the_users_interactions() -> None:
    """It fetches with its first head, and trains as soon as it has the table."""
    scenario = a_scenario()
    table = a_table(scenario)
    head = a_head(table)
    device = a_device(scenario)
    assert [type(each) for each in device.session.connected(0.0)] == [Subscribe, PublishStatus]

    (fetch,) = device.session.head_received(head, 1.0)
    assert isinstance(fetch, Fetch)
    device.hold(head, table)
    (train,) = device.session.table_ready(head, 2.0)

    assert isinstance(train, Train)
    assert train.seq == 1
    device.train(train)
    assert device.session.training_done(train, 3.0) == [PublishUpdate(1)]
