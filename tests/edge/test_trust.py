"""Which heads a device believes: by itself, and as a running agent that somebody lies to."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.errors import ConfigError, ProtocolError, SignatureError
from broker.protocol.messages import Head, decode, encode
from broker.protocol.signatures import keys_from_text, keys_to_text, signed_bytes
from edge.config import DeviceConfig, initialise, load_config, read_head_keys
from edge.guards import Limits
from edge.trust import Trust
from tests.brokers import RunningBroker
from tests.edge.builders import a_head, a_plan, a_table
from tests.edge.running import DEVICE, PlayedAggregator, RunningAgent, looking_at, told, wait_until
from trainer.errors import ParameterError

FLEET = "shop"
SECRETS = [Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in range(4)]
KEYS = tuple(each.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for each in SECRETS)


def signed(head: Head, key: int = 0, fleet: str = FLEET) -> Head:
    """Sign a head as an aggregator does."""
    return replace(head, signature=SECRETS[key].sign(signed_bytes(head, fleet)))


def test_signed_head_is_believed_after_its_journey() -> None:
    """Decoding and encoding give the bytes that were signed."""
    trust = Trust(FLEET, KEYS[:1])
    assert not trust.check(decode(encode(signed(a_head(3, session=9))), Head))
    assert (trust.refused, trust.complaint) == (0, "")


def test_head_with_one_changed_bit_is_not_believed() -> None:
    """Whichever bit (each eleventh is tried): it is another head, or none."""
    payload = encode(signed(a_head(3, session=9)))
    trust = Trust(FLEET, KEYS[:1])
    for bit in range(0, 8 * len(payload), 11):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            head = decode(bytes(changed), Head)
        except ProtocolError:
            continue
        with pytest.raises(SignatureError):
            trust.check(head)
    assert trust.refused > 128 * 8 // 11  # the bits of the signature and the hashes alone


def test_unsigned_head_is_not_believed_where_a_key_is_pinned() -> None:
    """And believed where none is."""
    trust = Trust(FLEET, KEYS[:1])
    with pytest.raises(SignatureError, match="not signed"):
        trust.check(a_head())
    assert trust.refused == 1
    Trust(FLEET, ()).check(a_head())


def test_head_of_another_fleet_or_key_is_not_believed() -> None:
    """A key that is used for two fleets does not make one's head the other's."""
    trust = Trust(FLEET, KEYS[:1])
    for head in (signed(a_head(), key=1), signed(a_head(), fleet="other")):
        with pytest.raises(SignatureError, match="none of this fleet's keys"):
            trust.check(head)


@pytest.mark.parametrize(
    "old",
    [a_head(4, session=9), a_head(99, session=8), a_head(0, session=1, instance=77)],
    ids=["version", "session", "instance"],
)
def test_head_that_is_sent_again_later_is_not_believed(old: Head) -> None:
    """Neither by the process that met the newer one, nor by the next; the newest itself is, again."""
    newest = signed(a_head(5, session=9))
    trust = Trust(FLEET, KEYS[:1])
    trust.check(newest)
    for each in (trust, Trust(FLEET, KEYS[:1], met=newest)):
        with pytest.raises(SignatureError, match="older"):
            each.check(signed(old))
        assert each.complaint
        each.check(newest)
        assert not each.complaint
        each.check(signed(a_head(0, session=10, instance=77)))


def test_earlier_key_ends_with_the_first_head_of_a_later_one() -> None:
    """Also for the next process, which is told the key; a file of other keys begins anew."""
    trust = Trust(FLEET, KEYS[:3])
    assert not trust.check(signed(a_head(1), key=0))
    assert trust.check(signed(a_head(2), key=1))
    assert not trust.check(signed(a_head(3), key=1))
    later = Trust(FLEET, KEYS[:3], trust.met_key)
    for each in (trust, later):
        with pytest.raises(SignatureError):
            each.check(signed(a_head(4), key=0))
    assert later.check(signed(a_head(4), key=2))
    Trust(FLEET, (KEYS[0],), later.met_key).check(signed(a_head(4), key=0))


def test_rotation_ends_what_a_stolen_key_has_signed() -> None:
    """Its last head may claim to be the newest for ever; the next key's first head is believed."""
    last = signed(a_head(5, session=2**53))
    trust = Trust(FLEET, KEYS[:2])
    trust.check(last)
    with pytest.raises(SignatureError, match="older"):
        trust.check(signed(a_head(6, session=10)))
    for process in (trust, Trust(FLEET, KEYS[:2], trust.met_key, last)):
        assert process.check(signed(a_head(6, session=10), key=1))
        with pytest.raises(SignatureError):
            process.check(last)


def test_head_that_was_never_checked_is_no_bound() -> None:
    """It was here before the keys were."""
    anybodys = replace(signed(a_head(9, session=2**53)), signature=bytes(64))
    Trust(FLEET, KEYS[:1], "", anybodys).check(signed(a_head(1, session=3)))


def test_key_file_is_read_as_it_was_written() -> None:
    """And nothing else is."""
    assert keys_from_text(keys_to_text(KEYS), "file") == KEYS
    for text in ("", "# nothing", "ed25519 12", f"rsa {KEYS[0].hex()}", f"ed25519 {bytes(32).hex()}"):
        with pytest.raises(ParameterError, match="file"):
            keys_from_text(text, "file")
    with pytest.raises(ParameterError, match="different"):
        keys_from_text(keys_to_text((KEYS[0], KEYS[0])), "file")


def a_trusting_directory(path: Path, fleet: str, broker: str) -> Path:
    """Set up a device that pins a key."""
    keys = path.with_name("head_key.pub")
    keys.write_text(keys_to_text(KEYS[:2]))
    config = DeviceConfig(
        device_id=DEVICE, fleet=fleet, broker=broker, scorer="numpy", training=Limits(max_load_per_core=0.0)
    )
    initialise(path, config, {"head_keys": keys})
    keys.unlink()  # the device has its own
    return path


def test_key_file_that_is_gone_is_named(tmp_path: Path) -> None:
    """A device that was told to ask for signatures never goes on without."""
    directory = a_trusting_directory(tmp_path / "me", FLEET, "mqtt://127.0.0.1:1")
    config = load_config(directory, {})
    assert read_head_keys(config) == KEYS[:2]
    (directory / "head_key.pub").unlink()
    with pytest.raises(ConfigError, match=r"head_key\.pub"):
        read_head_keys(config)


@pytest.mark.mqtt
def test_agent_keeps_its_version_whatever_is_published(
    tmp_path: Path, shared_mosquitto: RunningBroker
) -> None:
    """A changed bit, no signature, an old head: reported, and passed over; the next true head is taken."""
    fleet = "trust-1"
    directory = a_trusting_directory(tmp_path / "me", fleet, shared_mosquitto.url)
    soon = a_plan(check_in_s=0.1)
    first, second = a_table(seed=1), a_table(seed=2)
    true = signed(a_head(1, session=5, table=first, plan=soon), fleet=fleet)
    newer = a_head(2, session=5, table=second, plan=soon)
    assert true.signature is not None
    bit_changed = replace(signed(newer, fleet=fleet), b=0.26)
    with PlayedAggregator(shared_mosquitto, fleet) as played, RunningAgent(directory) as running:
        played.publish(true, first)
        wait_until(lambda: told(directory, "head_complaint") == "" and version(directory) == 1, "the version")
        played.publish_table(newer, second)
        for lie, words in (
            (bit_changed, "none of this fleet's keys"),
            (newer, "not signed"),
            (signed(a_head(7, session=4, table=second, plan=soon), fleet=fleet), "older"),
        ):
            played.publish_head(lie)
            wait_until(lambda words=words: words in str(told(directory, "head_complaint")), "the complaint")  # type: ignore[misc]
            assert version(directory) == 1
        played.publish_head(signed(newer, key=1, fleet=fleet))
        wait_until(lambda: version(directory) == 2, "the next version")
        wait_until(lambda: told(directory, "head_complaint") == "", "the end of the complaint")
        assert told(directory, "head_key") == KEYS[1].hex()
        assert running.agent is not None


def version(directory: Path) -> int | None:
    """Give the version of the table on the device."""
    with looking_at(directory) as store:
        head = store.model_head()
    return None if head is None else head.version
