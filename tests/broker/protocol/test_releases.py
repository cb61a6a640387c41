"""Bundles: what goes in comes out, and every change, cut or liberty is refused by name."""

import hashlib
import io
import random
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import (
    BundleCutOffError,
    BundleDamagedError,
    BundleError,
    BundleForbiddenError,
    BundleForeignError,
    BundleTooLargeError,
    BundleUntrustedError,
    SchemaError,
)
from broker.protocol import releases
from broker.protocol.ed25519 import verify
from broker.protocol.releases import (
    HEADER_BYTES,
    MAX_FILES,
    Manifest,
    SignedManifest,
    check_files,
    manifest_bytes,
    read_bundle,
    read_head,
    require_fleet,
    signed_bytes,
    signer_of,
)
from tests.bundles import FLEET, KEY, OTHER_KEY, OTHER_SECRET, SECRET, a_bundle, a_head, a_manifest, sign

FILES = {
    "app/bin/check.sh": b"#!/bin/sh\nexit 0\n",
    "app/empty": b"",
    "app/page.html": b"<p>hello</p>" * 40,
    "settings.toml": b"table_writes_mb = 2.0\n",
}


def checked(content: bytes, most_bytes: int = 1 << 20) -> SignedManifest:
    """Read a whole bundle, as a device does."""
    stream = io.BytesIO(content)
    signed = read_bundle(stream, len(content), most_bytes)
    signer_of(signed, (OTHER_KEY, KEY))
    require_fleet(signed.manifest, FLEET)
    check_files(stream, signed.manifest)
    assert stream.read() == b""
    return signed


_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,9}", fullmatch=True)


@given(
    files=st.dictionaries(st.builds("app/{}{}".format, _names, _names), st.binary(max_size=200), min_size=1),
    release=st.integers(1, 2**53),
    note=st.text(max_size=50),
    machines=st.lists(_names, max_size=3),
)
@settings(max_examples=15, deadline=None)
def test_bundle_says_what_it_was_made_of(
    files: dict[str, bytes], release: int, note: str, machines: list[str]
) -> None:
    """Whatever is in it; and the same release gives the same bytes."""
    folded = {path.casefold() for path in files}
    if len(folded) < len(files):
        with pytest.raises(SchemaError, match="same path"):
            a_manifest(files)
        return
    made = a_bundle(files, release=release, note=note, machines=tuple(machines))
    signed = checked(made)
    assert made == a_bundle(files, release=release, note=note, machines=tuple(machines))
    assert (signed.manifest.release, signed.manifest.note) == (release, note)
    assert signed.manifest.machines == tuple(machines)
    assert {file.path: file.sha256 for file in signed.manifest.files} == {
        path: hashlib.sha256(content).digest() for path, content in files.items()
    }
    assert read_head(signed.head) == signed


def test_every_changed_bit_is_found() -> None:
    """Wherever it is: in the header, the manifest or a file. Always by the same name."""
    whole = a_bundle(FILES)
    rng = random.Random(1)
    head = len(a_head(a_manifest(FILES)))
    # Each bit of the header; of the rest, where a signature or a hash is the same for all, some.
    places = [(at, bit) for at in range(HEADER_BYTES) for bit in range(8)]
    places += [(at, rng.randrange(8)) for at in range(HEADER_BYTES, head, 5)]
    places += [(at, rng.randrange(8)) for at in range(head, len(whole), 5)]
    for at, bit in places:
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        with pytest.raises(BundleDamagedError):
            checked(bytes(changed))


def test_every_cut_is_found() -> None:
    """Wherever it ends too early."""
    whole = a_bundle(FILES)
    for length in range(len(whole)):
        with pytest.raises(BundleCutOffError):
            checked(whole[:length])


def test_what_follows_is_found() -> None:
    """A byte too many may be anything."""
    with pytest.raises(BundleDamagedError, match="follow"):
        checked(a_bundle(FILES) + b"\0")


@pytest.mark.parametrize("content", [b"PK\3\4 and so on" * 20, b"\x7fELF", b"pfedrel1" * 30])
def test_other_files_are_no_bundles(content: bytes) -> None:
    """By their first bytes."""
    with pytest.raises(BundleDamagedError, match="no bundle"):
        checked(content)


def test_strangers_signature_is_refused() -> None:
    """One that holds, of a key that nobody here knows; what it signs does not matter."""
    whole = a_bundle(FILES, secret=OTHER_SECRET)
    signed = read_bundle(io.BytesIO(whole), len(whole))
    with pytest.raises(BundleUntrustedError, match=OTHER_KEY.hex()[:16]):
        signer_of(signed, (KEY,))
    assert signer_of(signed, (KEY, OTHER_KEY)) == 1


def test_claimed_key_does_not_help_a_forger() -> None:
    """The fleet's key in the header, another's signature."""
    manifest = a_manifest(FILES)
    forged = releases.bundle_head(manifest, KEY, sign(OTHER_SECRET, signed_bytes(manifest_bytes(manifest))))
    with pytest.raises(BundleDamagedError, match="does not hold"):
        read_head(forged)


def test_signature_is_of_nothing_else() -> None:
    """What is signed begins with what it is: no head of a fleet, no certificate, can be taken for it."""
    assert signed_bytes(b"x").startswith(b"pfedrec/release/1\n")
    assert verify(KEY, signed_bytes(b"x"), sign(SECRET, signed_bytes(b"x")))


def test_other_fleets_bundle_is_refused() -> None:
    """With the same key, too."""
    with pytest.raises(BundleForeignError, match="attic"):
        checked(a_bundle(FILES, fleet="attic"))


def test_size_is_bounded_before_anything_is_read() -> None:
    """By what it says, and by what it is."""
    whole = a_bundle({"app/big": bytes(5000)})
    with pytest.raises(BundleTooLargeError, match="at most 4000"):
        checked(whole, most_bytes=4000)
    with pytest.raises(BundleTooLargeError):
        read_bundle(io.BytesIO(whole), 1 << 40, most_bytes=1 << 20)


@pytest.mark.parametrize(
    "path",
    [
        "app/../../etc/passwd",
        "../model.tflite",
        "/etc/passwd",
        "app//x",
        "app/",
        "app/.profile",
        "app/-rf",
        "app/a b",
        "app/x\0y",
        "app/\u00e9",
        "app\\x",
        "other/x",
        "model.bin",
        "manifest",
        "",
        "app/" + "x" * 300,
    ],
)
def test_path_that_leads_elsewhere_is_refused(path: str) -> None:
    """When it is made, and when somebody who may sign has made it otherwise."""
    with pytest.raises(SchemaError):
        a_manifest({path: b"x"})
    with pytest.raises(BundleForbiddenError):
        checked(_signed_by_hand(files=[[path, 1, bytes(32), False]]))


def _signed_by_hand(**changes: Any) -> bytes:
    """Sign a manifest without the checks of `Manifest`; one file of a byte follows."""
    content = {
        "v": 1,
        "fleet": FLEET,
        "release": 1,
        "note": "",
        "runtime": "0",
        "machines": [],
        "files": [["app/x", 1, hashlib.sha256(b"x").digest(), False]],
        "health": "",
        "health_timeout_s": 30,
    } | changes
    encoded = cbor2.dumps({name: value for name, value in content.items() if value is not ...})
    size = HEADER_BYTES + len(encoded) + 1
    fixed = releases._HEADER.pack(b"PFEDREL1", size, len(encoded), KEY, sign(SECRET, signed_bytes(encoded)))
    return fixed + hashlib.sha256(fixed).digest()[:8] + encoded + b"x"


def test_bundle_by_hand_is_one() -> None:
    """So that the refusals below are those of what was changed."""
    checked(_signed_by_hand())


_FILE = ["app/x", 1, bytes(32), False]


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"more": 1},
        {"note": ...},
        {"fleet": "a/b"},
        {"release": 0},
        {"release": 1.0},
        {"release": 2**60},
        {"runtime": "newest"},
        {"runtime": "1" * 40},
        {"machines": "x86_64"},
        {"machines": [1]},
        {"machines": ["x"] * 20},
        {"files": []},
        {"files": {}},
        {"files": [["app/x", 1, bytes(32)]]},
        {"files": [["app/x", -1, bytes(32), False]]},
        {"files": [["app/x", 1, bytes(31), False]]},
        {"files": [["app/x", 1, bytes(32), 1]]},
        {"files": [["app/x", 2**40, bytes(32), False]]},
        {"files": [["settings.toml", 100_000, bytes(32), False]]},
        {"files": [_FILE, _FILE]},
        {"files": [["app/X", 1, bytes(32), False], _FILE]},
        {"files": [["app/y", 0, bytes(32), False], _FILE]},
        {"files": [_FILE, ["app/x/y", 0, bytes(32), False]]},
        {"files": [[f"app/{number:06}", 0, bytes(32), False] for number in range(MAX_FILES + 1)]},
        {"files": [["app/x", 2, bytes(32), False]]},
        {"health": "app/x"},
        {"health": "app/y"},
        {"health_timeout_s": 0},
        {"health_timeout_s": 100_000},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_manifest_that_is_not_allowed_is_refused(changes: dict[str, Any]) -> None:
    """Though its signature holds."""
    with pytest.raises(BundleForbiddenError):
        checked(_signed_by_hand(**changes))


def test_as_many_files_as_may_be() -> None:
    """With the longest names, they fit the manifest."""
    files = {f"app/{number:04}{'x' * 90}": b"" for number in range(MAX_FILES)}
    assert len(checked(a_bundle(files)).manifest.files) == MAX_FILES


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_nothing_but_the_named_refusals(data: st.DataObject) -> None:
    """Whatever is done to a bundle."""
    content = a_bundle(FILES)
    for _ in range(data.draw(st.integers(1, 3))):
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        instead = data.draw(
            st.sampled_from([b"", content[:first], bytes(last - first)]) | st.binary(max_size=20)
        )
        content = content[:first] + instead + content[last:]
    try:
        checked(content)
    except BundleError:
        return
    assert content == a_bundle(FILES)


def test_manifest_gives_a_file_by_its_path() -> None:
    """None where there is none."""
    manifest: Manifest = a_manifest(FILES)
    file = manifest.file("settings.toml")
    assert file is not None
    assert file.size == len(FILES["settings.toml"])
    assert manifest.file("model.tflite") is None
