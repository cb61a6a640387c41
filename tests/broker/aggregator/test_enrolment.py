"""Claims: one certificate for one key, once, in time; over HTTPS, with wrong tries bounded."""

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from broker.aggregator.enrolment import MOST_BYTES, Enrolment, TooManyTriesError, enrolling
from broker.authority.authority import Authority
from broker.claim import Claim
from broker.errors import AddressInUseError, ClaimRefusedError, InputError
from tests.brokers import HOST, PATIENCE_S

NOW = datetime.now(UTC).replace(microsecond=0)
WRONG = "z" * 26


class Fleet:
    """An authority that gives claims, and what answers for it."""

    def __init__(self, path: Path) -> None:
        self.authority = Authority.make(path / "authority", "shop", ["localhost", HOST], NOW)
        self.now = NOW
        self.said: list[str] = []
        self.enrolment = Enrolment(
            self.authority, "mqtts://localhost:8883", lambda: self.now, self.said.append
        )

    def claim(self, device: str = "pi-1", days: int = 7) -> Claim:
        """Give a claim."""
        return self.authority.give_claims([device], NOW + timedelta(days=days), 100)[0]

    def ask(self, claim: Claim, request: bytes, address: str = HOST) -> x509.Certificate:
        """Spend a claim; give the certificate."""
        answer = self.enrolment.answer(asked(claim, request), address)
        return x509.load_pem_x509_certificate(answer["certificate"].encode())

    def issued(self, device: str = "pi-1") -> int:
        """Give how many certificates a device has had."""
        return sum(entry.name == device for entry in Authority(self.authority.path).entries)


def asked(claim: Claim, request: bytes) -> bytes:
    """Give what a device sends."""
    return json.dumps({"device": claim.device, "code": claim.code, "request": request.decode()}).encode()


def request_of(key: Any, name: str = "anything") -> bytes:
    """Give a key's request for a certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def a_key() -> ec.EllipticCurvePrivateKey:
    """Make a device's key."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Give a fleet."""
    return Fleet(tmp_path)


def test_claim_gives_its_device_a_certificate_for_the_key_it_brings(fleet: Fleet) -> None:
    """For the claim's id, whatever the request says; it can be revoked as any other."""
    key = a_key()
    certificate = fleet.ask(fleet.claim(), request_of(key, "aggregator:main"))
    name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert name == "pi-1"
    assert certificate.not_valid_after_utc == NOW + timedelta(days=100)
    encoding = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    assert certificate.public_key().public_bytes(*encoding) == key.public_key().public_bytes(*encoding)
    assert fleet.authority.revoke(["pi-1"], NOW) == 1


def test_claim_is_good_once_and_its_key_may_ask_again(fleet: Fleet) -> None:
    """The first answer may have been lost on its way."""
    claim, request = fleet.claim(), request_of(a_key())
    first = fleet.ask(claim, request)
    with pytest.raises(ClaimRefusedError, match="used before, with another key"):
        fleet.ask(claim, request_of(a_key()))
    fleet.now = NOW + timedelta(days=30)
    assert fleet.ask(claim, request) == first
    assert fleet.issued() == 1


def test_claim_whose_spending_was_cut_off_is_spent_again_by_its_key(fleet: Fleet) -> None:
    """After the register was written and before the claim was: both certificates are on the register."""
    claim, request = fleet.claim(), request_of(a_key())
    (file,) = (fleet.authority.path / "claims").iterdir()
    before = file.read_bytes()
    fleet.ask(claim, request)
    file.write_bytes(before)
    fleet.ask(claim, request)
    assert fleet.issued() == 2
    assert fleet.authority.revoke(["pi-1"], NOW) == 2


def test_claim_out_of_date_is_refused(fleet: Fleet) -> None:
    """From its last second on."""
    claim = fleet.claim(days=7)
    fleet.now = NOW + timedelta(days=7)
    with pytest.raises(ClaimRefusedError, match="out of date"):
        fleet.ask(claim, request_of(a_key()))
    assert fleet.issued() == 0


@pytest.mark.parametrize("change", [{"code": WRONG}, {"device": "nobody"}], ids=str)
def test_wrong_code_and_unknown_device_are_told_the_same(fleet: Fleet, change: dict[str, str]) -> None:
    """Who tries learns nothing, and gets into no log with what was tried."""
    claim = replace(fleet.claim(), **change)  # type: ignore[arg-type]
    with pytest.raises(ClaimRefusedError, match="is not one of this fleet's, or its code is wrong"):
        fleet.ask(claim, request_of(a_key()))


def test_claim_ends_when_its_device_gets_another_one_or_a_certificate_or_is_revoked(fleet: Fleet) -> None:
    """There is one way in for an id at a time."""
    first = fleet.claim("a")
    fleet.claim("a")
    second = fleet.claim("b")
    fleet.authority.issue_device("b", NOW, 10)
    third = fleet.claim("c")
    assert fleet.authority.revoke(["c"], NOW) == 1
    with pytest.raises(InputError):
        fleet.authority.revoke(["d"], NOW)
    for claim in (first, second, third):
        with pytest.raises(ClaimRefusedError):
            fleet.ask(claim, request_of(a_key()))


def test_authority_keeps_no_code(fleet: Fleet) -> None:
    """Who reads its files cannot enrol; and others cannot read them."""
    claim = fleet.claim()
    files = [path for path in fleet.authority.path.rglob("*") if path.is_file()]
    assert not [path for path in files if claim.code.encode() in path.read_bytes()]
    (kept,) = (fleet.authority.path / "claims").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("request_pem", "words"),
    [
        (request_of(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (request_of(ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n", "cannot be used"),
        (b"", "cannot be used"),
    ],
)
def test_request_that_is_none_spends_nothing(fleet: Fleet, request_pem: bytes, words: str) -> None:
    """And one with a signature of another key proves nothing."""
    claim = fleet.claim()
    with pytest.raises(InputError, match=words):
        fleet.ask(claim, request_pem)
    assert fleet.ask(claim, request_of(a_key()))


def test_request_signed_by_another_key_is_refused(fleet: Fleet) -> None:
    """Whoever asks must have the key."""
    request = x509.load_pem_x509_csr(request_of(a_key())).public_bytes(Encoding.DER)
    broken = bytearray(request)
    broken[-1] ^= 1
    pem = ssl.DER_cert_to_PEM_cert(bytes(broken)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(InputError, match="cannot be used"):
        fleet.ask(fleet.claim(), pem.encode())


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 5000, b'{"device": 1}', b'"x"'])
def test_question_that_is_none_is_refused(fleet: Fleet, content: bytes) -> None:
    """With a sentence of its own."""
    with pytest.raises(InputError, match="a claim is"):
        fleet.enrolment.answer(content, HOST)


def test_wrong_tries_of_one_address_are_bounded(fleet: Fleet) -> None:
    """Right ones of it as well, then; others are served. In IPv6 a network is one."""
    claim, wrong, request = fleet.claim(), replace(fleet.claim("pi-2"), code=WRONG), request_of(a_key())
    for number in range(10):
        with pytest.raises(ClaimRefusedError):
            fleet.ask(wrong, request, f"fd00::{number + 1}")
    with pytest.raises(TooManyTriesError):
        fleet.ask(claim, request, "fd00::99")
    assert fleet.ask(claim, request, "fd00:0:0:1::1")


@pytest.mark.parametrize("code", ["\ud800", "", "z" * 25, "z" * 27, "Z" * 26, "é" * 26])
def test_code_that_is_none_counts_as_a_wrong_try(fleet: Fleet, code: str) -> None:
    """Whatever is in it."""
    claim = fleet.claim()
    content = json.dumps({"device": "pi-1", "code": code, "request": request_of(a_key()).decode()}).encode()
    for _ in range(10):
        with pytest.raises(InputError, match="a claim is"):
            fleet.enrolment.answer(content, HOST)
    with pytest.raises(TooManyTriesError):
        fleet.ask(claim, request_of(a_key()))


def test_error_of_our_own_is_no_try_of_the_devices(fleet: Fleet) -> None:
    """Who has to wait for the operator does not have to wait for that, too."""
    claim, request = fleet.claim(), request_of(a_key())
    key = fleet.authority.path / "ca.key"
    key.rename(key.with_suffix(".away"))
    with answering(fleet) as port:
        for _ in range(20):
            status, body = call(fleet, port, "POST", "/enrol", body=asked(claim, request))
            assert (status, "operator's log" in json.loads(body)["error"]) == (503, True)
        key.with_suffix(".away").rename(key)
        assert call(fleet, port, "POST", "/enrol", body=asked(claim, request))[0] == 200


def test_what_nobody_foresaw_is_answered_and_counts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came of what was sent."""

    def fail(*_: object) -> bytes:
        raise RecursionError

    claim, request = fleet.claim(), request_of(a_key())
    monkeypatch.setattr(Authority, "enrol", fail)
    with answering(fleet) as port:
        codes = [call(fleet, port, "POST", "/enrol", body=asked(claim, request))[0] for _ in range(11)]
    assert codes == [503] * 10 + [429]


@contextmanager
def answering(fleet: Fleet) -> Iterator[int]:
    """Answer over HTTPS; give the port."""
    with enrolling(fleet.enrolment, fleet.authority, HOST, 0) as port:
        yield port


def call(fleet: Fleet, port: int, method: str, path: str, **sent: Any) -> tuple[int, bytes]:
    """Make one call as a device does."""
    context = ssl.create_default_context(cafile=str(fleet.authority.path / "ca.pem"))
    link = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=context)
    try:
        link.request(method, path, **sent)
        response = link.getresponse()
        return response.status, response.read()
    finally:
        link.close()


def test_server_answers_with_the_codes_it_says(fleet: Fleet) -> None:
    """Each with a sentence; somebody who says nothing holds nobody up."""
    claim, request = fleet.claim(), request_of(a_key())
    with answering(fleet) as port, socket.create_connection((HOST, port)):
        assert call(fleet, port, "GET", "/ca.pem") == (200, (fleet.authority.path / "ca.pem").read_bytes())
        status, body = call(fleet, port, "POST", "/enrol", body=asked(claim, request))
        assert status == 200
        assert set(json.loads(body)) == {"certificate", "head_keys", "fleet", "broker"}
        for method, path, sent, expected in (
            ("GET", "/enrol", {}, 404),
            ("POST", "/", {"body": b""}, 404),
            ("POST", "/enrol", {"body": b"{"}, 400),
            ("POST", "/enrol", {"body": b"x" * (MOST_BYTES + 1)}, 413),
            ("POST", "/enrol", {"headers": {"Content-Length": "-1"}}, 413),
            ("POST", "/enrol", {"headers": {"Content-Length": "\xb2"}}, 413),
            ("POST", "/enrol", {"body": asked(claim, request).replace(claim.code.encode(), b"\\ud800")}, 400),
            ("POST", "/enrol", {"body": asked(replace(claim, code=WRONG), request)}, 403),
        ):
            status, body = call(fleet, port, method, path, **sent)
            assert (status, list(json.loads(body))) == (expected, ["error"])
        with pytest.raises(AddressInUseError), enrolling(fleet.enrolment, fleet.authority, HOST, port):
            pass
    assert fleet.said == [f"pi-1 has enrolled from {HOST}"]
