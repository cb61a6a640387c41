"""Releases on a device: what is refused and leaves no trace, what is installed, tried, kept or given back."""

import io
import os
import platform
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import pytest

from broker.errors import (
    BundleDamagedError,
    BundleOlderError,
    BundleUntrustedError,
    ConfigError,
    CorruptError,
    DiskFullError,
    InUseError,
)
from broker.exit_codes import ExitCode
from broker.protocol.signatures import keys_to_text
from edge.config import load_config
from edge.releases import install
from edge.scorer import MODEL_SHA256, make_scorer, read_model
from edge.slots import Slots
from edge.slotstate import ATTEMPTS
from edge.trial import Running, begin
from tests.bundles import KEY, OTHER_KEY, OTHER_SECRET, a_bundle
from tests.edge.commands import Call, assert_refused
from tests.edge.releasing import PROGRAM, a_device, put
from tests.edge.running import wait_until


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Give the directory of a device that takes releases."""
    return a_device(tmp_path / "me")


def tree(directory: Path) -> dict[str, bytes]:
    """Give all files below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith("device.sqlite3")
    }


def tried(directory: Path) -> list[str]:
    """Go through a start and its trial; give what was said."""
    said: list[str] = []
    running = Running(directory, begin(directory, said.append), said.append, 0.0)
    moments = iter(range(1, 100_000))

    def over() -> bool:
        running.look(float(next(moments)), 0.0, connected=True)
        return not running.on_trial

    wait_until(over, "the end of the trial")
    return said


def test_first_release_is_tried_and_kept(device: Path) -> None:
    """Then `current` leads to its files."""
    put(device, {"app/a/greeting": b"hello", "app/run.sh": PROGRAM % 0}, release=7)
    assert not (device / "current").exists()
    assert tried(device) == ["release 7 works and is kept"]
    assert (device / "current" / "app" / "a" / "greeting").read_bytes() == b"hello"
    assert os.access(device / "current" / "app" / "run.sh", os.X_OK)
    state = Slots(device).state()
    assert (state.release, state.highest, state.key) == (7, 7, KEY.hex())
    before = Slots(device).mark()
    assert begin(device, pytest.fail).release == 7
    assert Slots(device).mark() == before, "an ordinary start writes nothing"


def test_next_one_is_written_beside_it(device: Path) -> None:
    """And the one after that over the first."""
    slots = []
    for release in (1, 2, 3):
        put(device, {"app/n": b"%d" % release}, release=release)
        tried(device)
        slots.append(Slots(device).state().in_use)
        assert (device / "current" / "app" / "n").read_bytes() == b"%d" % release
    assert slots == ["a", "b", "a"]


_CHANGED = {"app/greeting.txt": b"hello\n"}


def _bit(whole: bytes) -> bytes:
    return whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:]


@pytest.mark.parametrize(
    ("bundle", "code", "words"),
    [
        (lambda: _bit(a_bundle(release=5)), ExitCode.BUNDLE_DAMAGED, "was changed"),
        (lambda: a_bundle(release=5)[:-1], ExitCode.BUNDLE_CUT_OFF, "here are the first"),
        (lambda: a_bundle({"app/x": bytes(300_000)}, release=5), ExitCode.BUNDLE_TOO_LARGE, "at most 200000"),
        (lambda: a_bundle(release=5, secret=OTHER_SECRET), ExitCode.BUNDLE_UNTRUSTED, "none of the fleet's"),
        (lambda: a_bundle(release=5, fleet="attic"), ExitCode.BUNDLE_FOREIGN, "attic"),
        (lambda: a_bundle(release=3), ExitCode.BUNDLE_OLDER, "older than 4"),
        (lambda: a_bundle(release=4), ExitCode.BUNDLE_OLDER, "here already"),
        (lambda: a_bundle(release=5, runtime="99.1"), ExitCode.BUNDLE_UNFIT, "needs pfedrec-edge 99.1"),
        (lambda: a_bundle(release=5, machines=("pdp11",)), ExitCode.BUNDLE_UNFIT, platform.machine()),
        (
            lambda: a_bundle({"app/c.sh": b""}, release=5, health="app/c.sh"),
            ExitCode.BUNDLE_UNFIT,
            "update_commands = true",
        ),
        (
            lambda: a_bundle({"settings.toml": b'broker = "mqtt://elsewhere"'}, release=5),
            ExitCode.BUNDLE_FORBIDDEN,
            "not broker",
        ),
        (lambda: a_bundle({"settings.toml": b"="}, release=5), ExitCode.BUNDLE_FORBIDDEN, "settings.toml"),
        (
            lambda: a_bundle({"settings.toml": b"[training]\nmin_free_memory_mb = -1"}, release=5),
            ExitCode.BUNDLE_FORBIDDEN,
            "min_free_memory_mb",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_have_a_code_each_and_leave_no_trace(
    tmp_path: Path, call: Call, bundle: Callable[[], bytes], code: ExitCode, words: str
) -> None:
    """Neither of what is in use nor of the release of before."""
    device = a_device(tmp_path / "me", update_max_mb=0.2, update_commands=False)
    for release in (2, 4):
        put(device, {"app/n": b"%d" % release}, release=release)
        tried(device)
    (tmp_path / "bundle").write_bytes(bundle())
    before = tree(device)
    assert_refused(call("update", "--dir", device, tmp_path / "bundle"), code, words)
    assert tree(device) == before
    assert begin(device, pytest.fail).release == 4


def test_command_installs_and_says_when_it_counts(device: Path, tmp_path: Path, call: Call) -> None:
    """And status tells what is in use."""
    (tmp_path / "bundle").write_bytes(a_bundle(release=9))
    found = call("update", "--dir", device, tmp_path / "bundle")
    assert (found.code, found.out) == (0, "")
    assert "release 9 is installed; the next start tries it" in found.err
    tried(device)
    assert "release           9" in " ".join(call("status", "--dir", device).out.split("\n"))


def test_device_without_keys_takes_nothing(tmp_path: Path, call: Call) -> None:
    """Signing is not left to chance."""
    device = a_device(tmp_path / "me")
    settings = (
        (device / "config.toml").read_text().replace('release_keys = "release_key.pub"', 'release_keys = ""')
    )
    (device / "config.toml").write_text(settings)
    (tmp_path / "bundle").write_bytes(a_bundle())
    assert_refused(call("update", "--dir", device, tmp_path / "bundle"), ExitCode.CONFIG, "release_keys")


def test_earlier_key_ends_with_its_successors_first_release(device: Path) -> None:
    """As that of heads does: a stolen key is followed by the next."""
    (device / "release_key.pub").write_text(keys_to_text((OTHER_KEY, KEY), "releases"))
    put(device, release=1, secret=OTHER_SECRET)
    tried(device)
    put(device, release=2)
    tried(device)
    with pytest.raises(BundleUntrustedError, match="a later one has followed"):
        put(device, release=3, secret=OTHER_SECRET)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"app/c.sh": PROGRAM % 3}, "it ended with 3"),
        ({"app/c.sh": b"#!/bin/sh\nsleep 100 & wait\n"}, "longer than 1 s"),
        ({"app/c.sh": b"#!/no/such/shell\n"}, "cannot be run"),
        ({"app/c.sh": b"#!/bin/sh\nkill -9 $$\n"}, "signal 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_application_that_does_not_work_takes_its_release_back(
    device: Path, files: dict[str, bytes], words: str
) -> None:
    """By itself; the one of before goes on."""
    put(device, {"app/n": b"1"}, release=1)
    tried(device)
    put(device, files, release=2, health="app/c.sh", health_timeout_s=1)
    (said,) = tried(device)
    assert words in said
    assert said.endswith("back to release 1")
    state = begin(device, pytest.fail)
    assert (state.release, state.failed, state.highest) == (1, 2, 1)
    assert (device / "current" / "app" / "n").read_bytes() == b"1"
    put(device, release=2)  # mended, and tried again
    assert tried(device) == ["release 2 works and is kept"]


@pytest.mark.skipif(
    make_scorer("auto").name != "tflite", reason="TFLite is not installed; numpy needs no model"
)
@pytest.mark.parametrize(
    "model",
    [b"", b"\x20\0\0\0TFL3" + bytes(64), read_model()[:700] + bytes(200) + read_model()[900:]],
    ids=["empty", "zeros", "damaged before it was signed"],
)
def test_scorer_that_does_not_work_takes_its_release_back(tmp_path: Path, model: bytes) -> None:
    """Even one that ends the process that loads it; that is another one than the device's."""
    device = a_device(tmp_path / "me", scorer="auto")
    put(device, {"model.tflite": model}, release=1)
    (said,) = tried(device)
    assert "the scorer does not work" in said
    assert Slots(device).state().failed == 1


@pytest.mark.skipif(
    make_scorer("auto").name != "tflite", reason="TFLite is not installed; numpy needs no model"
)
def test_scorer_that_works_is_used(tmp_path: Path) -> None:
    """By whoever scores in the directory."""
    device = a_device(tmp_path / "me", scorer="tflite")
    put(device, {"model.tflite": read_model(), "settings.toml": b"table_writes_mb = 2.5"}, release=1)
    assert Slots(device).model() is None
    assert tried(device) == ["release 1 works and is kept"]
    model = Slots(device).model()
    assert model is not None
    assert make_scorer("tflite", lambda: model).name == "tflite"
    assert len(MODEL_SHA256) == 64


def test_settings_of_a_release_go_before_the_files(device: Path) -> None:
    """Those of the environment before both; given back, they are as before."""
    before = load_config(device, {})
    put(device, {"settings.toml": b"table_writes_mb = 2.5\n[training]\nmin_new_interactions = 7"}, release=1)
    assert load_config(device, {}) == before
    tried(device)
    config = load_config(device, {})
    assert (config.table_writes_mb, config.training.min_new_interactions) == (2.5, 7)
    assert config.training.max_load_per_core == 0.0
    assert load_config(device, {"PFEDREC_TABLE_WRITES_MB": "1"}).table_writes_mb == 1.0
    put(device, {"app/x": b""}, release=2)
    tried(device)
    assert load_config(device, {}) == before


def test_starts_that_are_killed_come_back(device: Path) -> None:
    """A trial has some; then the one of before goes on, and says why."""
    put(device, {"app/n": b"1"}, release=1)
    tried(device)
    put(device, {"app/n": b"2"}, release=2)
    for _ in range(ATTEMPTS):
        assert begin(device, pytest.fail).release == 2
    said: list[str] = []
    assert begin(device, said.append).release == 1
    assert "3 starts" in said[0]
    assert (device / "current" / "app" / "n").read_bytes() == b"1"


def test_start_that_was_told_to_end_costs_no_attempt(device: Path) -> None:
    """However often."""
    put(device, release=1)
    for _ in range(2 * ATTEMPTS):
        state = begin(device, pytest.fail)
        assert state.on_trial
        Running(device, state, pytest.fail, 0.0).stopped()


def _damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    "harm",
    [
        lambda slot: _damage(slot / "app" / "n"),
        lambda slot: (slot / "app" / "n").write_bytes((slot / "app" / "n").read_bytes() + b"x"),
        lambda slot: (slot / "app" / "n").unlink(),
        lambda slot: _damage(slot / "manifest"),
        lambda slot: (slot / "manifest").unlink(),
        lambda slot: (slot / "manifest").write_bytes(b""),
    ],
)
def test_damaged_files_lead_back_and_further(device: Path, harm: Callable[[Path], Any]) -> None:
    """To the release of before, and from that to what ships; and the same release may come again."""
    for release in (1, 2):
        put(device, {"app/n": b"%d" % release}, release=release)
        tried(device)
    said: list[str] = []
    harm(device / "slots" / "b")
    assert begin(device, said.append).release == 1
    harm(device / "slots" / "a")
    assert begin(device, said.append).release == 0
    assert not (device / "current").is_symlink()
    assert [sentence.rsplit("; ", 1)[1] for sentence in said] == [
        "back to release 1",
        "back to what ships with pfedrec-edge",
    ]
    with pytest.raises(BundleOlderError):
        put(device, release=1)
    put(device, {"app/n": b"2"}, release=2)
    assert tried(device) == ["release 2 works and is kept"]


def test_damaged_state_begins_anew_without_forgetting_what_was_newest(device: Path) -> None:
    """What ships works; nothing older than what was there gets in."""
    put(device, release=5)
    tried(device)
    (device / "slots" / "state").write_bytes(b"\xff\0")
    assert begin(device, pytest.fail).release == 0
    with pytest.raises(BundleOlderError):
        put(device, release=4)
    put(device, release=5)
    assert tried(device) == ["release 5 works and is kept"]


def test_trial_in_use_is_not_written_over(device: Path) -> None:
    """While start runs; one that waits for it may be."""
    put(device, release=1)
    put(device, {"app/n": b"2"}, release=2)
    assert begin(device, pytest.fail).release == 2
    whole = a_bundle(release=3)
    with pytest.raises(InUseError, match="release 2 is being tried"):
        install(device, load_config(device, {}), io.BytesIO(whole), len(whole), lambda: True)
    put(device, release=3)
    assert tried(device) == ["release 3 works and is kept"]


def test_two_updates_at_once_are_one(device: Path) -> None:
    """The second is told."""
    with Slots(device).writing(), pytest.raises(InUseError, match="another update"):
        put(device, release=1)


def test_running_start_notices_what_was_installed(device: Path) -> None:
    """Within a second, and only then."""
    running = Running(device, begin(device, pytest.fail), pytest.fail, 0.0)
    assert not running.look(1.0, 0.0, connected=True)
    put(device, release=1)
    assert running.look(3.0, 0.0, connected=True)


def test_start_notices_what_was_installed_while_it_began(device: Path) -> None:
    """Between its choice of a release and its first look."""
    state = begin(device, pytest.fail)
    put(device, release=1)
    running = Running(device, state, pytest.fail, 0.0)
    assert running.look(1.0, 0.0, connected=True)


def test_trial_lasts_as_long_as_is_set(device: Path) -> None:
    """With the broker; ten times as long without."""
    put(device, release=1)
    said: list[str] = []
    running = Running(device, begin(device, said.append), said.append, 0.0)
    examination = running._examination
    assert examination is not None
    wait_until(lambda: examination.done, "the examination")
    for now, connected in ((50.0, True), (599.0, False), (59.0, True)):
        running._look_at = 0.0
        assert not running.look(now, 60.0, connected=connected)
        assert running.on_trial
    running._look_at = 0.0
    assert not running.look(600.0, 60.0, connected=False)
    assert said == ["release 1 works and is kept"]


def test_file_that_changes_between_the_looks_is_refused(device: Path) -> None:
    """The slot is empty then, and what is in use stays."""
    put(device, {"app/n": b"1"}, release=1)
    tried(device)
    whole = a_bundle({"app/n": b"2" * 100}, release=2)

    class Changing(io.BytesIO):
        def seek(self, at: int, whence: int = 0) -> int:
            self.getbuffer()[-1] ^= 1
            return super().seek(at, whence)

    with pytest.raises(BundleDamagedError, match="app/n"):
        install(device, load_config(device, {}), Changing(whole), len(whole))
    assert Slots(device).state().holding == "empty"
    assert begin(device, pytest.fail).release == 1


@pytest.mark.root
def test_full_disk_keeps_what_is_in_use(small_disk: Path) -> None:
    """It is said before anything is written."""
    device = a_device(small_disk / "me")
    put(device, {"app/n": b"1"}, release=1)
    tried(device)
    with pytest.raises(DiskFullError, match="free some"):
        put(device, {"app/n": bytes(900_000)}, release=2)
    assert begin(device, pytest.fail).release == 1


def test_damaged_content_is_never_handed_out(device: Path) -> None:
    """A model that TFLite would end the process with; settings are those of the file then."""
    put(device, {"model.tflite": read_model(), "settings.toml": b"table_writes_mb = 1.0"}, release=1)
    begin(device, pytest.fail)
    _damage(device / "current" / "model.tflite")
    _damage(device / "current" / "settings.toml")
    with pytest.raises(CorruptError, match="goes back"):
        Slots(device).model()
    assert load_config(device, {}).table_writes_mb == 4.0


def test_release_for_this_runtime_fits(device: Path) -> None:
    """And for an earlier one."""
    put(device, release=1, runtime=package_version("pfedrec-edge"), machines=("pdp11", platform.machine()))
    put(device, release=2, runtime="0.0.9")


def test_configuration_without_a_key_file_is_told(device: Path) -> None:
    """As for heads."""
    (device / "release_key.pub").unlink()
    with pytest.raises(ConfigError, match=r"release_key\.pub"):
        put(device, release=1)
