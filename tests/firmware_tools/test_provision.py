"""Many devices at once: whole or not at all, no id twice, nothing open to others, nothing changed unseen."""

import csv
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker.authority.authority import Authority
from broker.authority.claims import read_claim, require_good
from broker.claim import Claim
from broker.errors import BatchNotGenuineError, ClaimRefusedError, InputError
from broker.exit_codes import ExitCode, exit_code_of
from broker.tls import TlsFiles, certificate_facts
from edge.config import initialise, load_config, read_bundle, read_head_keys
from firmware_tools.batch import check
from firmware_tools.cli import cli
from firmware_tools.provisioning import Order, provision
from tests.brokers import PATIENCE_S
from tests.edge.disks import small_disk
from tests.edge.running import wait_until
from tests.firmware_tools.provisioned import NOW, a_shop, begun, ids_in, modes_of

BROKER = "mqtts://localhost:8883"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Give a fleet's authority in ``shop``."""
    return a_shop(tmp_path / "shop")


def order(out: Path, **changes: object) -> Order:
    """Give a small order."""
    form = "archive" if out.suffix == ".tar" else "folder"
    wanted: dict[str, object] = {"out": out, "form": form, "broker": BROKER, "days": 30, "count": 3}
    return Order(**(wanted | changes))  # type: ignore[arg-type]


def made(authority: Authority, wanted: Order) -> set[str]:
    """Make a batch; give its ids."""
    return set(provision(authority, wanted, NOW, lambda _: None).devices)


def invoke(*arguments: object) -> Result:
    """Call ``firmware-tools provision``."""
    return CliRunner().invoke(cli, ["provision", *map(str, arguments)])


def test_three_hundred_devices_have_all_that_a_device_needs(authority: Authority, tmp_path: Path) -> None:
    """Each a name, a key of its own for it alone, and settings; together they are signed."""
    settings = tmp_path / "settings.toml"
    settings.write_text("keep_days = 90\n[training]\nmax_load_per_core = 0.5\n")
    before = os.umask(0)
    try:
        result = invoke(
            *("devices", "--dir", tmp_path / "shop", "--count", 300, "--prefix", "kiosk"),
            *("--out", tmp_path / "batch", "--settings", settings, "--json"),
        )
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.output
    ids = json.loads(result.stdout)["ids"]
    assert len(set(ids)) == 300
    assert ids_in(tmp_path / "batch") == set(ids)
    assert all(each.startswith("kiosk-") for each in ids)
    keys = list((tmp_path / "batch").rglob("key.pem"))
    assert modes_of(keys) == {0o600}
    assert len({key.read_bytes() for key in keys}) == 300
    folders = [path for path in (tmp_path / "batch").rglob("*") if path.is_dir()]
    assert modes_of([tmp_path / "batch", *folders]) == {0o700}
    assert check(tmp_path / "batch", authority.head_keys()).devices == ids
    assert {entry.name for entry in Authority(authority.path).entries if entry.kind == "device"} == set(ids)

    bundle = tmp_path / "batch" / "devices" / ids[7]
    assert certificate_facts(bundle / "cert.pem").common_name == ids[7]
    config, files = read_bundle(bundle)
    initialise(tmp_path / "me", config, files)
    there = load_config(tmp_path / "me", {})
    assert (there.device_id, there.broker, there.keep_days) == (ids[7], BROKER, 90.0)
    assert there.training.max_load_per_core == 0.5
    assert read_head_keys(there) == authority.head_keys()
    assert there.address.context() is not None


def test_archive_has_the_same_as_a_folder(authority: Authority, tmp_path: Path) -> None:
    """Unpacked, its keys are their owner's alone, too."""
    ids = made(authority, order(tmp_path / "batch.tar"))
    assert (tmp_path / "batch.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(tmp_path / "batch.tar") as archive:
        assert {member.mode for member in archive if member.name.endswith("key.pem")} == {0o600}
        archive.extractall(tmp_path / "unpacked")  # noqa: S202 - made here
    (root,) = (tmp_path / "unpacked").iterdir()
    assert ids_in(root) == ids
    for path in (tmp_path / "batch.tar", root):
        assert set(check(path, authority.head_keys()).devices) == ids
    assert TlsFiles(
        ca=root / "devices" / min(ids) / "ca.pem",
        cert=root / "devices" / min(ids) / "cert.pem",
        key=root / "devices" / min(ids) / "key.pem",
    ).context()


def test_ids_of_ones_own_are_given_once(authority: Authority, tmp_path: Path) -> None:
    """Whoever gave them first: this command, or device add; renewing is asked for."""
    authority.issue_device("by-hand", NOW, 30)
    first = order(tmp_path / "a", devices=("pi-1", "pi-2"))
    assert made(authority, first) == {"pi-1", "pi-2"}
    for taken in ("pi-2", "by-hand"):
        with pytest.raises(InputError, match=f"{taken} was given before"):
            made(authority, order(tmp_path / "b", devices=("pi-3", taken)))
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="no device pi-9"):
        made(authority, order(tmp_path / "b", devices=("pi-9",), renew=True))
    assert made(authority, order(tmp_path / "b", devices=("pi-2", "by-hand"), renew=True)) == {
        "pi-2",
        "by-hand",
    }
    serials = [entry.serial for entry in Authority(authority.path).entries if entry.name == "pi-2"]
    assert len(set(serials)) == 2


def test_what_is_there_is_left_alone(authority: Authority, tmp_path: Path) -> None:
    """A second call for the same place makes nothing and gives no id."""
    made(authority, order(tmp_path / "batch"))
    (tmp_path / "mine.tar").write_text("mine")
    for out in (tmp_path / "batch", tmp_path / "mine.tar"):
        with pytest.raises(InputError, match="exists"):
            made(authority, order(out))
    assert (tmp_path / "mine.tar").read_text() == "mine"
    assert len(Authority(authority.path).device_names()) == 3
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def claims_in(file: Path) -> dict[str, str]:
    """Give the claims of a file by their devices."""
    with file.open(newline="") as lines:
        return {row["device"]: row["claim"] for row in csv.DictReader(lines)}


def test_claims_are_a_list_for_its_owner_alone(authority: Authority, tmp_path: Path) -> None:
    """A line for each device: different codes, whose ids nobody else is given."""
    out = tmp_path / "claims.csv"
    result = invoke("claims", "--dir", tmp_path / "shop", "--count", 50, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    ids = json.loads(result.stdout)["ids"]
    claims = {device: Claim.parse(text) for device, text in claims_in(out).items()}
    assert list(claims) == ids == [claim.device for claim in claims.values()]
    assert len({claim.code for claim in claims.values()}) == 50
    assert {claim.authority for claim in claims.values()} == {authority.fingerprint()}
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="was given before"):
        made(authority, order(tmp_path / "batch", devices=(ids[0],)))
    with pytest.raises(InputError, match="exists"):
        made(authority, order(out, form="claims"))
    refused = invoke(
        "claims", "--dir", tmp_path / "shop", "--count", 1, "--out", tmp_path / "x", "--host", "h"
    )
    assert "the broker's certificate is not for h" in str(refused.exception)


def test_claims_that_were_cut_off_are_made_anew_for_the_same_ids(
    authority: Authority, tmp_path: Path
) -> None:
    """Codes of the first time are worth nothing then."""
    out = tmp_path / "claims.csv"
    wanted = order(out, form="claims", broker="localhost:8884")
    ids = made(authority, wanted)
    first = claims_in(out)
    (ledger,) = (authority.path / "batches").glob("*.json")
    ledger.write_text(json.dumps(json.loads(ledger.read_text()) | {"finished": False}))
    out.unlink()
    assert made(authority, wanted) == ids == set(claims_in(out))
    for device, text in first.items():
        given = read_claim(authority.path / "claims", device)
        with pytest.raises(ClaimRefusedError):
            require_good(given, Claim.parse(text).code, "key", NOW)
        assert require_good(given, Claim.parse(claims_in(out)[device]).code, "key", NOW)


@pytest.mark.process
def test_runs_at_once_give_no_id_twice(tmp_path: Path) -> None:
    """Four processes; two of them were told the same ids, of which one gets them."""
    a_shop(tmp_path / "shop")
    ids = tmp_path / "ids.txt"
    ids.write_text("# ours\n" + "".join(f"pi-{number}\n" for number in range(20)))
    runs = [begun(tmp_path / "shop", "--count", "20", "--out", str(tmp_path / name)) for name in ("a", "b")]
    runs += [
        begun(tmp_path / "shop", "--ids", str(ids), "--out", str(tmp_path / name)) for name in ("c", "d")
    ]
    ends = [run.communicate(timeout=3 * PATIENCE_S)[1] for run in runs]
    assert [run.returncode for run in runs[:2]] == [0, 0], ends
    assert sorted(run.returncode for run in runs[2:]) == [0, 2], ends
    folders = [path for path in map(tmp_path.joinpath, "abcd") if path.exists()]
    given = [each for folder in folders for each in ids_in(folder)]
    assert len(given) == len(set(given)) == 60


@pytest.mark.process
def test_run_that_is_killed_is_finished_by_the_same_call(tmp_path: Path) -> None:
    """With the same ids; nothing looks whole before, and the certificates of the first run are revoked."""
    authority = a_shop(tmp_path / "shop")
    out, staging = tmp_path / "batch", tmp_path / ".batch.unfinished"
    options = ("--count", "400", "--out", str(out))
    run = begun(tmp_path / "shop", *options)
    wait_until(lambda: len(list(staging.glob("devices/*"))) > 5, "the first devices")
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=3 * PATIENCE_S)
    assert not out.exists()
    assert staging.stat().st_mode & 0o777 == 0o700
    with pytest.raises(BatchNotGenuineError, match="half of one"):
        check(staging, authority.head_keys())
    lost = Authority(authority.path).device_names()
    assert lost
    reserved = set(json.loads(next((authority.path / "batches").glob("*.json")).read_text())["devices"])
    assert lost <= reserved

    with pytest.raises(InputError, match="reserved for"):
        Authority(authority.path).issue_device(min(reserved), NOW, 30)
    with pytest.raises(InputError, match="begun with other options"):
        made(Authority(authority.path), order(out, count=5))
    again = begun(tmp_path / "shop", *options)
    assert "made anew for the same 400 ids" in again.communicate(timeout=3 * PATIENCE_S)[1]
    assert again.returncode == 0
    assert not staging.exists()
    assert set(check(out, authority.head_keys()).devices) == reserved == ids_in(out)
    entries = [entry for entry in Authority(authority.path).entries if entry.kind == "device"]
    assert {entry.name for entry in entries if entry.revoked_at} == lost
    assert sorted(entry.name for entry in entries if not entry.revoked_at) == sorted(reserved)


@pytest.mark.parametrize("form", ["folder", "archive", "claims"])
def test_run_that_is_cut_off_just_before_its_end_is_whole(
    authority: Authority, tmp_path: Path, form: str
) -> None:
    """Everything is there, and given for good: the same call only moves it to its place."""
    out, staging = tmp_path / "batch", tmp_path / ".batch.unfinished"
    wanted = order(out, form=form, broker="localhost:8884")
    ids = made(authority, wanted)
    content = out.read_bytes() if out.is_file() else sorted(out.rglob("*"))
    if form == "folder":
        out.rename(staging)
    else:
        staging.mkdir()
        out.rename(staging / form)
    assert made(authority, wanted) == ids
    assert content == (out.read_bytes() if out.is_file() else sorted(out.rglob("*")))
    assert not staging.exists()
    assert len(authority.batches()) == 1


@pytest.mark.parametrize("form", ["folder", "archive", "claims"])
def test_same_call_gives_other_ids_once_what_it_made_was_taken(
    authority: Authority, tmp_path: Path, form: str
) -> None:
    """Nothing that may be on a device is made anew; what is half there from a kill is cleared away."""
    out, staging = tmp_path / "batch", tmp_path / ".batch.unfinished"
    wanted = order(out, form=form, broker="localhost:8884")
    first = made(authority, wanted)
    out.rename(tmp_path / "taken")
    staging.mkdir()
    (staging / "half").write_text("of it")
    second = made(authority, wanted)
    assert first.isdisjoint(second)
    assert not [entry for entry in Authority(authority.path).entries if entry.revoked_at]
    assert not out.is_dir() or not (out / "half").exists()


@pytest.mark.root
@pytest.mark.parametrize("name", ["batch", "batch.tar"])
def test_full_disk_leaves_nothing_and_the_same_call_goes_on(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    """Once there is room, with the same ids."""
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"pi-{number}\n" for number in range(300)))
    with small_disk(tmp_path / "small"):
        out = tmp_path / "small" / name
        option = "--archive" if out.suffix else "--out"
        call = ("devices", "--dir", tmp_path / "shop", "--ids", ids, option, out)
        result = invoke(*call)
        assert result.exception is not None
        assert exit_code_of(result.exception) is ExitCode.DISK_FULL  # type: ignore[arg-type]
        assert list((tmp_path / "small").iterdir()) == []
        ids.write_text("pi-1\n")
        assert "other options" in str(invoke(*call).exception)
    shutil.rmtree(tmp_path / "small")
    (tmp_path / "small").mkdir()
    ids.write_text("".join(f"pi-{number}\n" for number in range(300)))
    assert invoke(*call).exit_code == 0
    assert len(check(out, authority.head_keys()).devices) == 300


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a key is another": lambda device: _flip(device / "key.pem"),
    "a file is missing": lambda device: (device / "ca.pem").unlink(),
    "a device is missing": shutil.rmtree,
    "a file more": lambda device: (device / "config.toml").write_text("broker = 'mqtt://thief'"),
    "a link": lambda device: (device / "link").symlink_to("/etc/passwd"),
    "a key is open to others": lambda device: (device / "key.pem").chmod(0o644),
    "the manifest is another": lambda device: _flip(device.parents[1] / "manifest.json"),
    "the signature is another": lambda device: _flip(device.parents[1] / "manifest.sig"),
    "no signature": lambda device: (device.parents[1] / "manifest.sig").unlink(),
    "no manifest": lambda device: (device.parents[1] / "manifest.json").unlink(),
    "a manifest of lists": lambda device: (device.parents[1] / "manifest.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_changed_batch_is_refused(
    authority: Authority, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """With one sentence and its own exit code."""
    device = tmp_path / "batch" / "devices" / min(made(authority, order(tmp_path / "batch")))
    key = authority.path / "head_key.pub"
    assert invoke("verify", tmp_path / "batch", "--head-key", key).exit_code == 0
    damage(device)
    result = invoke("verify", tmp_path / "batch", "--head-key", key)
    assert isinstance(result.exception, BatchNotGenuineError)
    assert exit_code_of(result.exception) is ExitCode.BATCH_NOT_GENUINE


def test_archive_that_is_changed_or_cut_off_anywhere_is_refused(authority: Authority, tmp_path: Path) -> None:
    """Each 97th byte; only the padding of tar does not matter."""
    made(authority, order(tmp_path / "batch.tar", count=1))
    whole = (tmp_path / "batch.tar").read_bytes()
    genuine = check(tmp_path / "batch.tar", authority.head_keys())
    file = tmp_path / "other.tar"
    for place in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        try:
            assert check(file, authority.head_keys()) == genuine
        except BatchNotGenuineError:
            continue
        assert not whole[place] or whole[place : place + 1] in b"0 ", place  # padding, or a tar header's
    for end in range(0, len(whole) - 10240, 511):
        file.write_bytes(whole[:end])
        with pytest.raises(BatchNotGenuineError):
            check(file, authority.head_keys())


@pytest.mark.parametrize("how", ["../{}", "/{}", "{}", "other/{}", "x/../{}"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_archive_with_anything_outside_of_its_folder_is_refused(
    authority: Authority, tmp_path: Path, how: str, kind: bytes
) -> None:
    """A file, a folder or a link; under a name that was signed, too."""
    made(authority, order(tmp_path / "batch.tar", count=1))
    with tarfile.open(tmp_path / "batch.tar") as source, tarfile.open(tmp_path / "other.tar", "w") as target:
        members = source.getmembers()
        for member in members:
            if kind == tarfile.REGTYPE and member.name.endswith("key.pem"):
                content = source.extractfile(member)
                member.name = how.format(member.name.partition("/")[2])
                target.addfile(member, content)
            else:
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
        if kind != tarfile.REGTYPE:
            evil = tarfile.TarInfo(how.format("evil"))
            evil.type, evil.linkname = kind, "/etc"
            target.addfile(evil)
    with pytest.raises(BatchNotGenuineError):
        check(tmp_path / "other.tar", authority.head_keys())


def test_batch_of_another_fleet_is_refused(authority: Authority, tmp_path: Path) -> None:
    """Its own key does not help it."""
    made(authority, order(tmp_path / "batch.tar"))
    other = a_shop(tmp_path / "other")
    with pytest.raises(BatchNotGenuineError, match="somebody"):
        check(tmp_path / "batch.tar", other.head_keys())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "x"), "--count or --ids"),
        (("--count", "2"), "--out or --archive"),
        (("--count", "2", "--out", "x", "--archive", "y"), "--out or --archive"),
        (("--count", "2", "--out", "x", "--renew"), "--renew goes with --ids"),
        (("--count", "10001", "--out", "x"), "10001"),
        (("--count", "2", "--out", "x", "--prefix", "a/b"), "not allowed"),
        (("--ids", "twice.txt", "--out", "x"), "line 3"),
        (("--ids", "none.txt", "--out", "x"), "1 to 10000"),
        (("--count", "2", "--out", "x", "--settings", "own.toml"), "each device's own"),
        (("--count", "2", "--out", "x", "--settings", "wrong.toml"), "unknown entry 'keep_day'"),
        (("--count", "2", "--out", "x", "--settings", "files.toml"), "tls_key is each device's own"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_gives_no_id(
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    """Nothing is there afterwards, whatever was wrong."""
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("twice.txt", "pi-1\npi-2\npi-1\n"),
        ("none.txt", "# nobody\n"),
        ("own.toml", "device_id = 'x'\n"),
        ("wrong.toml", "keep_day = 3\n"),
        ("files.toml", "tls_key = 'mine.pem'\n"),
    ):
        Path(name).write_text(text)
    before = sorted(tmp_path.iterdir())
    result = invoke("devices", "--dir", tmp_path / "shop", *arguments)
    assert result.exit_code != 0
    assert words in result.output + str(result.exception)
    assert sorted(tmp_path.iterdir()) == before
    assert not list(authority.path.glob("batches/*"))
