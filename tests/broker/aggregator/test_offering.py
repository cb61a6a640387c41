"""The release on offer: checked when it is published, handed out in turns, named once it is all out."""

from pathlib import Path

import pytest

from broker.aggregator import offering
from broker.aggregator.offering import Offering, read_offer
from broker.errors import (
    BundleDamagedError,
    BundleForeignError,
    BundleOlderError,
    BundleUntrustedError,
    CorruptError,
    InputError,
)
from broker.protocol.chunks import CHUNK_BYTES, Assembly
from broker.protocol.messages import Offer
from broker.protocol.signatures import keys_to_text
from tests.bundles import FLEET, KEY, OTHER_SECRET, a_bundle


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give an aggregator's directory, as far as it matters here."""
    (tmp_path / "keys").write_text(keys_to_text((KEY,), "releases"))
    (tmp_path / "shop").mkdir()
    return tmp_path / "shop"


def publish(directory: Path, bundle: bytes, percent: int = 10, *groups: str, first: bool = True) -> Offer:
    """Publish a bundle; with the keys the first time."""
    path = directory.parent / "bundle"
    path.write_bytes(bundle)
    keys = directory.parent / "keys" if first else None
    return offering.publish(directory, FLEET, path, keys, percent, groups)


def test_published_release_is_on_offer(directory: Path) -> None:
    """To whom it is said to be; the keys are known from then on."""
    assert read_offer(directory) is None
    offer = publish(directory, a_bundle(release=3), 10, "beta")
    assert read_offer(directory) == offer
    assert (offer.release, offer.percent, offer.groups) == (3, 10, ("beta",))
    assert publish(directory, a_bundle(release=4), first=False).release == 4
    assert offering.change(directory, 50, ("lab",)).percent == 50
    changed = read_offer(directory)
    assert changed is not None
    assert (changed.release, changed.percent, changed.groups) == (4, 50, ("lab",))


def test_what_devices_would_refuse_is_not_offered(directory: Path) -> None:
    """Each by the name that a device would give it."""
    with pytest.raises(InputError, match="--keys"):
        publish(directory, a_bundle(), first=False)
    publish(directory, a_bundle(release=3))
    before = read_offer(directory)
    whole = a_bundle(release=4)
    for bundle, error in (
        (whole[:-1] + b"!", BundleDamagedError),
        (a_bundle(release=4, secret=OTHER_SECRET), BundleUntrustedError),
        (a_bundle(release=4, fleet="attic"), BundleForeignError),
        (a_bundle(release=2), BundleOlderError),
        (a_bundle({"app/x": b"another"}, release=3), BundleOlderError),
    ):
        with pytest.raises(error):
            publish(directory, bundle)
    assert read_offer(directory) == before


def test_nothing_on_offer_cannot_be_changed(directory: Path) -> None:
    """It is said what begins."""
    with pytest.raises(InputError, match="release publish"):
        offering.change(directory, 50, None)
    with pytest.raises(InputError, match="release publish"):
        offering.withdraw(directory)


def test_withdrawn_release_is_named_no_more(directory: Path) -> None:
    """And may be published again."""
    offered, bundle = Offering(directory), a_bundle(release=3)
    publish(directory, bundle)
    offered.look(1.0)
    list(offered.chunks())
    assert offered.named is not None
    assert offering.withdraw(directory).release == 3
    assert offered.look(2.0)
    assert not offered.named
    assert read_offer(directory) is None
    assert publish(directory, bundle, first=False).release == 3


def test_damaged_offer_is_told(directory: Path) -> None:
    """And the offer of before stays named."""
    publish(directory, a_bundle())
    (directory / "release" / "offer.json").write_text('{"release": 0}')
    with pytest.raises(CorruptError, match="publish the release again"):
        read_offer(directory)


def test_chunks_are_handed_out_in_turns_before_the_offer_is_named(directory: Path) -> None:
    """Anew with each connection; and a change of whom it is for needs none of them."""
    bundle = a_bundle({"app/big": bytes(20 * CHUNK_BYTES)})
    offered = Offering(directory)
    assert not offered.look(0.0)
    assert list(offered.chunks()) == []
    offer = publish(directory, bundle)
    for _ in range(2):
        whole, turns = Assembly(offer.size, offer.sha256), 0
        offered.look(1.0)
        while offered.named is None:
            turns += 1
            for slot, chunk in offered.chunks():
                assert slot == 1
                whole.add(chunk)
        assert (turns, whole.whole()) == (3, bundle)
        assert offered.named == offer
        assert list(offered.chunks()) == []
        offered.begin()
    while offered.named is None:
        list(offered.chunks())
    wider = offering.change(directory, 100, None)
    assert not offered.look(1.2), "not yet looked"
    assert offered.look(2.0)
    assert offered.named == wider
    newer = publish(directory, a_bundle(release=2))
    assert offered.look(3.0), "the one of before is named no more"
    list(offered.chunks())
    assert offered.named == newer


def test_copy_that_is_damaged_is_not_handed_out(directory: Path) -> None:
    """Said once; nothing is named."""
    publish(directory, a_bundle({"app/big": bytes(3 * CHUNK_BYTES)}))
    copy = directory / "release" / "bundle"
    copy.write_bytes(copy.read_bytes()[:-5])
    offered = Offering(directory)
    offered.look(1.0)
    with pytest.raises(BundleDamagedError, match="publish it again"):
        list(offered.chunks())
    assert list(offered.chunks()) == []
    assert offered.named is None
