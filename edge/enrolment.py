"""A device's way to a certificate of its own, by a claim: the secret key is made here and stays here.

1. The key is made, by the ``openssl`` command: this package has no library for it.
2. The enrolment server is asked for the authority's certificate, and believed only if that has the hash which
   the claim names. Nothing secret has been said so far.
3. Over a connection that this authority vouches for, code and request for a certificate are sent.
4. What comes back is checked and becomes the device's directory, as from a bundle.

A call that is cut off, by whatever, is given again: it goes on with the same key, and the server answers that
key again. What it has so far is in ``.enrolment`` in the directory, mode 0700.
"""

import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

from broker.claim import Claim
from broker.errors import (
    AlreadyInitialisedError,
    ClaimRefusedError,
    FleetMismatchError,
    InputError,
    UnreachableError,
)
from broker.protocol.topics import checked_id
from broker.storage import hold, make_directory, named_failures, read_file, write_atomically
from broker.tls import TlsFiles, certificate_facts, connection_trouble
from edge.config import BUNDLE_NAME, CONFIG_NAME, FILES, DeviceConfig, initialise, read_bundle
from trainer.errors import ParameterError

_STAGING = ".enrolment"
_TIMEOUT_S = 20.0
_MOST_BYTES = 64 * 1024
_OPENSSL_CONF = b"[req]\ndistinguished_name = name\n[name]\n"
"""A distribution's own may ask questions."""


def enrol(path: Path, claim: Claim) -> DeviceConfig:
    """Set a device's directory up with what a claim is good for; give its configuration.

    Raises
    ------
    AlreadyInitialisedError
        When there is a device in the directory.
    ClaimRefusedError
        When the server does not take the claim.
    FleetMismatchError
        When the server is not the one that the claim is for, or has answered nonsense.
    UnreachableError
        When it does not answer, or is asked too often; it may pass.
    InputError
        When there is no ``openssl``.
    NotWritableError, DiskFullError, InUseError
    """
    if (path / CONFIG_NAME).exists():
        raise AlreadyInitialisedError(
            f"{path} was set up before; use it with: edge-client start --dir {path}, "
            "or choose another directory"
        )
    staging = path / _STAGING
    make_directory(staging)
    staging.chmod(0o700)
    held = hold(staging)
    try:
        request = _request(staging, claim.device)
        _fetch_authority(staging, claim)
        _store_answer(staging, claim, _ask(staging, claim, request))
        config, files = read_bundle(staging)
        initialise(path, config, files)
        with named_failures(staging):
            shutil.rmtree(staging)
    finally:
        os.close(held)
    return config


def _request(staging: Path, device: str) -> bytes:
    """Give a request for a certificate (PEM) with the key that is in `staging`, made where missing."""
    key, owner = staging / FILES["tls_key"], staging / "device"
    if not key.exists() or not owner.exists() or read_file(owner) != device.encode():
        made = _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        write_atomically(key, made, mode=0o600)
        write_atomically(owner, device.encode())
    write_atomically(staging / "openssl.cnf", _OPENSSL_CONF)
    # Whose it is, the server knows from the claim.
    return _openssl(
        *("req", "-new", "-sha256", "-subj", "/CN=device"),
        *("-key", str(key), "-config", str(staging / "openssl.cnf")),
    )


def _openssl(*arguments: str) -> bytes:
    try:
        done = subprocess.run(
            ["openssl", *arguments], check=True, capture_output=True, timeout=60.0, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise InputError(
            "the command openssl makes the device's key, and is not installed; install it (apt-get install "
            "openssl), or set the device up with --bundle"
        ) from None
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode("utf-8", "replace").strip().splitlines()
        raise InputError(
            f"openssl {arguments[0]} fails: {said[-1] if said else type(error).__name__}"
        ) from None
    return done.stdout


def _fetch_authority(staging: Path, claim: Claim) -> None:
    """Store the authority's certificate, if it is the one that the claim names."""
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is told to whoever this is; what it says must have the claim's hash.
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    status, content = _call(claim, unchecked, "GET", "/ca.pem", None)
    try:
        der = ssl.PEM_cert_to_DER_cert(content.decode("ascii"))
    except ValueError:
        der = b""
    if status != http.client.OK or hashlib.sha256(der).hexdigest() != claim.authority:
        raise FleetMismatchError(
            f"{claim.host}:{claim.port} has not the authority that the claim names; nothing was told to it"
        )
    write_atomically(staging / FILES["tls_ca"], content)


def _ask(staging: Path, claim: Claim, request: bytes) -> dict[str, Any]:
    body = json.dumps({"device": claim.device, "code": claim.code, "request": request.decode()}).encode()
    context = TlsFiles(ca=staging / FILES["tls_ca"]).context()
    status, content = _call(claim, context, "POST", "/enrol", body)
    try:
        answer = json.loads(content)
        if status == http.client.OK:
            return dict(answer)
        sentence = str(answer["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FleetMismatchError(f"{claim.host}:{claim.port} answers what cannot be read") from error
    if status == http.client.FORBIDDEN:
        raise ClaimRefusedError(sentence)
    if status in (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE):
        raise UnreachableError(f"{claim.host}:{claim.port}: {sentence}")
    raise FleetMismatchError(f"{claim.host}:{claim.port} does not understand the claim: {sentence}")


def _call(
    claim: Claim, context: ssl.SSLContext, method: str, path: str, body: bytes | None
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(claim.host, claim.port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read(_MOST_BYTES)
    except ssl.SSLCertVerificationError as error:
        raise FleetMismatchError(
            f"{claim.host}:{claim.port} is not believed: {error.verify_message}; compare this machine's clock"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = connection_trouble(error) or getattr(error, "strerror", None) or str(error)
        raise UnreachableError(
            f"no enrolment server answers at {claim.host}:{claim.port}: {str(reason).lower()}; start it "
            "with edge-aggregator enrol, and call again"
        ) from error
    finally:
        connection.close()


def _store_answer(staging: Path, claim: Claim, answer: dict[str, Any]) -> None:
    """Write a bundle's files; the one that marks it as whole is the last."""
    where = f"{claim.host}:{claim.port}"
    names = ("certificate", "head_keys", "fleet", "broker")
    if not all(isinstance(answer.get(name), str) for name in names):
        raise FleetMismatchError(f"{where} answers without {' or '.join(names)}")
    try:
        config = DeviceConfig(
            device_id=claim.device,
            fleet=checked_id(answer["fleet"], "the fleet name"),
            broker=answer["broker"],
        )
    except ParameterError as error:
        raise FleetMismatchError(f"{where} answers what no device can use: {error}") from error
    write_atomically(staging / FILES["tls_cert"], answer["certificate"].encode())
    write_atomically(staging / FILES["head_keys"], answer["head_keys"].encode())
    if (name := certificate_facts(staging / FILES["tls_cert"]).common_name) != claim.device:
        raise FleetMismatchError(f"{where} answers with a certificate for {name!r}, not {claim.device}")
    lines = [f"{name} = {json.dumps(getattr(config, name))}" for name in ("device_id", "fleet", "broker")]
    write_atomically(staging / BUNDLE_NAME, "\n".join([*lines, ""]).encode())
