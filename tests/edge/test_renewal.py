"""New certificates for a device that has some: all files or none, and only its own."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.authority.authority import Authority
from broker.authority.bundle import write_bundle
from broker.errors import ConfigError, InputError
from edge.config import DeviceConfig, initialise, load_config, read_bundle
from edge.doctor import examine
from edge.renewal import finish, renew
from edge.surroundings import Surroundings

NOW = datetime.now(UTC)
NAMES = ("cert.pem", "key.pem", "ca.pem", "head_key.pub")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Give a fleet's authority."""
    return Authority.make(tmp_path / "authority", "shop", ["localhost"], NOW)


def bundle(authority: Authority, name: str = "new", device: str = "pi-1") -> Path:
    """Make a bundle for a device."""
    path = authority.path.with_name(name)
    write_bundle(path, authority, device, "mqtts://localhost", authority.issue_device(device, NOW, 10))
    return path


def a_device(authority: Authority) -> Path:
    """Set a device up with a first bundle."""
    me = authority.path.with_name("me")
    initialise(me, *read_bundle(bundle(authority, "old")))
    return me


def contents(path: Path) -> list[bytes]:
    """Give what a device or a bundle has."""
    return [(path / name).read_bytes() for name in NAMES]


def test_device_takes_all_files_of_its_new_bundle(authority: Authority) -> None:
    """Its key stays its own alone, and its settings are as before."""
    me = a_device(authority)
    before = (me / "config.toml").read_bytes()
    authority.rotate_head_key()
    new = bundle(authority)
    renew(me, new, {})
    assert contents(me) == contents(new)
    assert (me / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (me / "config.toml").read_bytes() == before
    assert load_config(me, {}).address.context() is not None
    assert not [path for path in me.iterdir() if "renewal" in path.name]


def test_bundle_that_does_not_fit_changes_nothing(authority: Authority, tmp_path: Path) -> None:
    """Another device's, another's certificate in it, or half of one."""
    me = a_device(authority)
    before = contents(me)
    other = bundle(authority, "other", "pi-2")
    with pytest.raises(InputError, match="is for device pi-2"):
        renew(me, other, {})
    mixed = bundle(authority, "mixed")
    for name in ("cert.pem", "key.pem"):
        (mixed / name).write_bytes((other / name).read_bytes())
    with pytest.raises(InputError, match="certificate of pi-2"):
        renew(me, mixed, {})
    (mixed / "key.pem").write_bytes((me / "key.pem").read_bytes())
    with pytest.raises(ConfigError, match="no certificate with its key"):
        renew(me, mixed, {})
    plain = tmp_path / "plain"
    initialise(plain, DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://localhost"))
    with pytest.raises(InputError, match="set up anew"):
        renew(plain, bundle(authority), {})
    assert contents(me) == before


@pytest.mark.parametrize("moved", range(len(NAMES) + 1))
def test_renewal_that_was_cut_off_is_finished(authority: Authority, moved: int) -> None:
    """After any number of files; `start` does so before anything else."""
    me, new = a_device(authority), bundle(authority)
    (me / "renewal").mkdir()
    for place, name in enumerate(NAMES):
        (me / "renewal" / name).write_bytes((new / name).read_bytes())
        if place < moved:
            (me / name).write_bytes((new / name).read_bytes())
    assert finish(me, {})
    assert contents(me) == contents(new)
    assert not (me / "renewal").exists()
    assert not finish(me, {})


def test_renewal_that_was_cut_off_before_it_was_whole_is_none(authority: Authority) -> None:
    """What is there stays, and the next one does not mind."""
    me, new = a_device(authority), bundle(authority)
    before = contents(me)
    (me / ".renewal").mkdir()
    (me / ".renewal" / "key.pem").write_text("half")
    assert not finish(me, {})
    assert contents(me) == before
    renew(me, new, {})
    assert contents(me) == contents(new)


def test_device_is_not_set_up_with_the_certificate_of_another(authority: Authority) -> None:
    """Its broker would take it for that one, and end that one's connection; the doctor says so, too."""
    given, files = read_bundle(bundle(authority))
    me = authority.path.with_name("me")
    with pytest.raises(ConfigError, match="certificate of pi-1; this is foo"):
        initialise(me, replace(given, device_id="foo"), files)
    assert not me.exists()
    initialise(me, given, files)
    settings = me / "config.toml"
    settings.write_text(settings.read_text().replace('"pi-1"', '"foo"'))
    found = {each.check: each for each in examine(me, {}, Surroundings(), NOW.timestamp())}
    assert (found["certificates"].level, "pi-1" in found["certificates"].found) == ("problem", True)
    assert found["broker"].level == "unchecked"
