"""Looks at a device and its surroundings for ``edge-client doctor``: all checks, whatever the others say.

It changes nothing. What the facts mean is for `edge.findings` to say.
"""

import os
import shutil
import sqlite3
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from urllib.parse import quote

from broker.errors import ConfigError, CorruptError, FileUnreadableError, MissingExtraError, PFedRecError
from broker.findings import Finding, ok, problem, unchecked
from broker.probe import Answer, probe
from broker.storage import is_in_use, named_failures, require_database, user_name
from broker.tls import certificate_facts
from edge import findings
from edge.bulletin import read_bulletin
from edge.config import (
    CONFIG_NAME,
    DATABASE_NAME,
    DeviceConfig,
    load_config,
    open_store,
    read_head_keys,
    require_own_certificate,
)
from edge.guards import Limits
from edge.personal import Personal
from edge.scorer import make_scorer
from edge.slots import Slots
from edge.store import Model
from edge.surroundings import Surroundings

_MB = 1e6
_TIMES = 7


def examine(
    directory: Path, environment: Mapping[str, str], surroundings: Surroundings, now: float
) -> list[Finding]:
    """Make every check.

    Parameters
    ----------
    now : float
        Seconds since the epoch, as this machine's clock has it.

    Raises
    ------
    NotInitialisedError
        When there is no device in the directory.
    """
    config, settings = _settings(directory, environment)
    model, newest_at, database = _database(directory / DATABASE_NAME, directory)
    return [
        findings.versions(_versions()),
        settings,
        _permissions(directory, config),
        database,
        findings.clock(now, newest_at, synchronised=surroundings.clock_is_synchronised()),
        _disk(directory),
        findings.memory(
            surroundings.free_memory_mb(),
            0.0 if model is None else model.table.nbytes / _MB,
            Limits() if config is None else config.training,
        ),
        _broker(directory, config, has_table=model is not None),
        _certificates(directory, config, now),
        _scorer(directory, config, model),
    ]


def _settings(directory: Path, environment: Mapping[str, str]) -> tuple[DeviceConfig | None, Finding]:
    try:
        config = load_config(directory, environment)
    except (ConfigError, FileUnreadableError) as error:
        return None, problem("settings", str(error), "correct what the sentence names")
    return config, ok("settings", f"device {config.device_id} of fleet {config.fleet}")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"pfedrec-edge": _version_of("pfedrec-edge")}
    found["Python"] = ".".join(map(str, sys.version_info[:3]))
    found["SQLite"] = sqlite3.sqlite_version
    for package in ("numpy", "paho-mqtt", "click", "cbor2"):
        found[package] = _version_of(package)
    for runtime in ("tflite-runtime", "ai-edge-litert"):  # one of them, or none: the scorer's own check
        version = _version_of(runtime)
        if version is not None:
            found[runtime] = version
    return found


def _version_of(package: str) -> str | None:
    try:
        return package_version(package)
    except PackageNotFoundError:
        return None


def _permissions(directory: Path, config: DeviceConfig | None) -> Finding:
    files = sorted(
        path for path in directory.iterdir() if path.name.startswith((CONFIG_NAME, DATABASE_NAME, "lock"))
    )
    owner = directory.stat().st_uid
    return findings.permissions(
        str(directory),
        unwritable=[str(path) for path in (directory, *files) if not os.access(path, os.W_OK)],
        strangers=[path.name for path in files if path.stat().st_uid != owner],
        owner=user_name(owner),
        config_mode=(directory / CONFIG_NAME).stat().st_mode & 0o777,
        # Settings that cannot be read may hold one.
        secret=config is None or config.address.password is not None,
    )


def _database(path: Path, directory: Path) -> tuple[Model | None, float | None, Finding]:
    """Give the model and the newest interaction's time, as far as they can be read, and the finding."""
    try:
        complaint = _quick_check(path)
        if complaint is not None:
            raise CorruptError(f"{path} is damaged: {complaint}")  # noqa: TRY301 - one way to the finding
        with closing(open_store(directory)) as store:
            store.remembered()
            store.personal()
            model, newest_at = store.model(), store.newest_interaction_at()
            total = store.interacted().total
    except CorruptError as error:
        remedy = f"edge-client start --dir {directory} puts it aside and keeps what can be read"
        return None, None, problem("database", str(error), remedy)
    except PFedRecError as error:
        return None, None, problem("database", str(error), "do what the sentence says")
    version = "no table yet" if model is None else f"table version {model.head.version}"
    return model, newest_at, ok("database", f"sound; {total} interactions, {version}")


def _quick_check(path: Path) -> str | None:
    """Give what SQLite finds wrong, None if nothing; the file is not written to."""
    require_database(path, "start makes a new one")
    with (
        named_failures(path),
        closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection,
    ):
        lines = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    return None if lines == ["ok"] else "; ".join(" ".join(line.split()) for line in lines)


def _disk(directory: Path) -> Finding:
    size = sum(path.stat().st_size for path in directory.glob(f"{DATABASE_NAME}*"))
    return findings.disk(shutil.disk_usage(directory).free / _MB, size / _MB)


def _broker(directory: Path, config: DeviceConfig | None, *, has_table: bool) -> Finding:
    if config is None:
        return unchecked("broker", "its address is in the settings, which cannot be read")
    # Two connections of one id end each other; and what `start` has is the better proof.
    if _is_online(directory):
        answer = Answer(outcome="accepts", reason=f"start is connected to {config.address}")
        return findings.broker(answer) if has_table else findings.silent_fleet(answer.reason, config.fleet)
    try:
        require_own_certificate(config)
    except ConfigError:
        return unchecked("broker", "our connection would end another's (see the certificates below)")
    return findings.broker(probe(config.address, config.device_id))


def _is_online(directory: Path) -> bool:
    try:
        if not is_in_use(directory):
            return False
        with closing(open_store(directory)) as store:
            return bool(read_bulletin(store, time.monotonic(), running=True)["online"])
    except PFedRecError:
        return False


def _certificates(directory: Path, config: DeviceConfig | None, now: float) -> Finding:
    if config is None:
        return unchecked("certificates", "which there are is in the settings, which cannot be read")
    tls = config.address.tls
    try:
        config.address.context()
        require_own_certificate(config)
        dates = []
        for path in (tls.cert, tls.ca):
            if path is not None:
                facts = certificate_facts(path)
                dates.append((path.name, facts.not_before.timestamp(), facts.not_after.timestamp()))
        n_keys = len(read_head_keys(config))
        if tls.key is not None and tls.key.stat().st_mode & 0o077:
            return problem("certificates", f"others may read {tls.key.name}", f"chmod 600 {tls.key}")
    except ConfigError as error:
        return problem("certificates", str(error), "init again with a new bundle, or put the file back")
    try:
        with closing(open_store(directory)) as store:
            complaint = store.fact("head_complaint") or None
    except PFedRecError:
        complaint = None
    return findings.certificates(now, dates, n_keys, complaint)


def _scorer(directory: Path, config: DeviceConfig | None, model: Model | None) -> Finding:
    try:
        scorer = make_scorer("auto" if config is None else config.scorer_choice, Slots(directory).model)
    except MissingExtraError as error:
        return problem("scorer", str(error), 'install it, or set scorer = "auto" in config.toml')
    except PFedRecError as error:
        return problem("scorer", str(error), "install pfedrec-edge again")
    if model is None:
        return unchecked("scorer", f"{scorer.name}; its speed shows once a table is here")
    first = Personal.beginning(model.head.w, model.head.b).score_function
    spans = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        scorer.logits(model.table, first)
        spans.append(time.perf_counter() - began)
    return findings.scorer(scorer.name, 1000.0 * statistics.median(spans), len(model.table))
