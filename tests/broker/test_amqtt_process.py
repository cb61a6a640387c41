"""The embedded broker under the load of clients that come at once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.amqtt_process import SteadySubscriptions
from tests.brokers import Peer, RunningBroker

CLIENTS = 40


def test_subscriptions_can_change_while_they_are_gone_through() -> None:
    """Who goes through them sees those that were there when it began."""
    subscriptions = SteadySubscriptions(a=[], b=[])
    seen = []
    for each in subscriptions:
        seen.append(each)
        subscriptions[f"{each}-later"] = []
    assert seen == ["a", "b"]
    assert list(subscriptions) == ["a", "b", "a-later", "b-later"]


@pytest.mark.mqtt
def test_broker_drops_no_client_while_others_subscribe(tmp_path: Path) -> None:
    """All connect at the same moment, to a broker with retained messages for each of them."""
    with RunningBroker("amqtt", tmp_path) as broker:
        with Peer(broker.address, "first") as first:
            for number in range(10):
                first.publish(f"shared/{number}", bytes(5000), retain=True)
        peers = [Peer(broker.address, f"c{number}", "shared/+", f"own/{number}") for number in range(CLIENTS)]
        with ExitStack() as running, ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(running.enter_context, peers))
            for peer in peers:
                assert peer.receive("shared/9").payload == bytes(5000)
    assert "Traceback" not in (tmp_path / "amqtt.log").read_text()
