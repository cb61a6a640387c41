"""``edge-aggregator`` as its users call it: what it prints, what it leaves, and every wrong call."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.aggregator import cli
from broker.aggregator.decisions import CloseRound, Journal
from broker.aggregator.directory import CONFIG_NAME, DATABASE_NAME, load_config, open_store
from broker.aggregator.store.interface import Batch
from broker.embedded import free_port
from broker.exit_codes import ExitCode
from broker.storage import exclusive
from tests.broker.aggregator.builders import a_round, an_entry, an_update
from tests.broker.aggregator.fleet import Device
from tests.broker.aggregator.old_database import DUMPS
from tests.broker.aggregator.old_database import restore as restore_dump
from tests.brokers import PATIENCE_S, RunningBroker, ScriptedBroker, require
from trainer.aggregation import ROBUST


@dataclass(frozen=True)
class Outcome:
    """What a call left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """The one line on stderr."""
        assert self.stdout == ""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Give a way to call the program as a shell does, in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["edge-aggregator", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code), captured.out, captured.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Give a file of three items."""
    path = tmp_path / "items.txt"
    path.write_text("a\nb\nc\n")
    return path


@pytest.fixture
def shop(tmp_path: Path, items: Path, call: Call) -> Path:
    """Give a directory that the command has set up."""
    path = tmp_path / "shop"
    assert call("init", "--dir", path, "--fleet", "shop", "--items", items, "--dim", 3, "--seed", 1).code == 0
    return path


def everything_below(path: Path) -> dict[str, bytes]:
    """Give the contents of all files below a folder, but not the lock."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def add_history(path: Path) -> None:
    """Let two rounds happen, and something of everything else."""
    store = open_store(path)
    store.commit(
        Batch(
            commands=[
                Journal(an_entry(seq=1)),
                Journal(an_entry(seq=2)),
                CloseRound(a_round(1)),
                Journal(an_entry(seq=3, verdict="stale")),
                Journal(an_entry(seq=4)),
                CloseRound(a_round(2, updates=1, staleness_sum=0, by_deadline=True)),
                Journal(an_entry(seq=5)),
            ],
            devices=["pi", "other"],
            duplicates=3,
            refused=2,
            closed_at=1_700_000_000.0,
        )
    )
    store.close()


# --- help --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("init",), ("start",), ("status",), ("rounds",)])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(call: Call, command: tuple[str, ...], flag: str) -> None:
    """Whoever asks for help sees a call that works."""
    outcome = call(*command, flag)

    assert (outcome.code, outcome.stderr) == (0, "")
    assert "Example:\n" in outcome.stdout
    assert "edge-aggregator" in outcome.stdout.split("Example:")[1]


def test_version_is_that_of_the_package(call: Call) -> None:
    """For reports."""
    assert call("--version").stdout.startswith("edge-aggregator, version ")


# --- init --------------------------------------------------------------------------------------------


def test_init_says_what_it_made_and_what_to_run(tmp_path: Path, items: Path, call: Call) -> None:
    """Two sentences on stderr, nothing on stdout."""
    path = tmp_path / "shop"

    outcome = call("init", "--dir", path, "--fleet", "shop", "--items", items)

    assert (outcome.code, outcome.stdout) == (0, "")
    assert outcome.stderr == (
        f"{path} is set up for fleet shop: 3 items, 32 dimensions\n"
        f"settings: {path / CONFIG_NAME}; run it with: edge-aggregator start --dir {path}\n"
    )


def test_init_writes_every_option_into_the_configuration(tmp_path: Path, items: Path, call: Call) -> None:
    """What was given is in the file; what was not has its default."""
    path = tmp_path / "shop"
    options = {
        "--buffer": 5,
        "--deadline": "2m",
        "--max-staleness": 3,
        "--check-in": "500ms",
        "--max-idle-passes": 7,
        "--population": 11,
        "--encoding": "float32",
        "--item-lr": 2.5,
        "--port": 2883,
    }

    given = [str(part) for option in options.items() for part in option]
    assert call("init", "--dir", path, "--fleet", "shop", "--items", items, *given).code == 0

    config = load_config(path, {})
    assert (config.buffer, config.deadline_s, config.max_staleness) == (5, 120.0, 3)
    assert (config.check_in_s, config.max_idle_passes, config.population) == (0.5, 7, 11)
    assert (config.encoding, config.item_lr, config.port) == ("float32", 2.5, 2883)
    assert (config.broker, config.strategy) == ("auto", "fedbuff")
    assert config.clip_to_median == 0.0


def test_init_writes_the_robust_preset(items: Path, tmp_path: Path, call: Call) -> None:
    """And the strategy that was asked for."""
    path = tmp_path / "robust"
    given = ("--robust", "--strategy", "fedavg")
    assert call("init", "--dir", path, "--fleet", "shop", "--items", items, *given).code == 0

    config = load_config(path, {})
    assert {name: getattr(config, name) for name in ROBUST} == dict(ROBUST)
    assert config.strategy == "fedavg"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--fleet", "a/b"], ExitCode.USAGE, "the fleet name 'a/b' is not allowed"),
        (["--dim", "0"], ExitCode.USAGE, "0 is not in the range 1<=x<=1024"),
        (["--dim", "1025"], ExitCode.USAGE, "range"),
        (["--seed", "-1"], ExitCode.USAGE, "range"),
        (["--buffer", "0"], ExitCode.USAGE, "buffer is 0; it must lie between"),
        (["--buffer", "many"], ExitCode.USAGE, "'many' is not a valid integer"),
        (["--deadline", "soon"], ExitCode.USAGE, "'soon' is no time span"),
        (["--deadline", "8d"], ExitCode.USAGE, "the deadline is 691200.0 s"),
        (["--check-in", "8d"], ExitCode.USAGE, "check_in_s"),
        (["--max-staleness", "-1"], ExitCode.USAGE, "max_staleness is -1"),
        (["--max-idle-passes", "0"], ExitCode.USAGE, "max_idle_passes is 0"),
        (["--population", "-1"], ExitCode.USAGE, "population is -1"),
        (
            ["--encoding", "zip"],
            ExitCode.USAGE,
            "encoding is 'zip'; it must be one of float32, float16, int8",
        ),
        (["--item-lr", "-1"], ExitCode.USAGE, "item_lr is -1.0"),
        (["--port", "70000"], ExitCode.USAGE, "port is 70000"),
        (["--items", "no-such-file"], ExitCode.FILE_UNREADABLE, "no-such-file cannot be read: no such file"),
        (["--no-such-option"], ExitCode.USAGE, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_init_makes_nothing(
    tmp_path: Path, items: Path, call: Call, arguments: list[str], code: ExitCode, said: str
) -> None:
    """The sentence says what is wrong with which option, and no directory comes into being."""
    path = tmp_path / "shop"

    outcome = call("init", "--dir", path, "--fleet", "shop", "--items", items, *arguments)

    assert (outcome.code, outcome.stdout) == (code, "")
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == [items]


def test_init_with_a_wrong_item_file_names_the_line(tmp_path: Path, items: Path, call: Call) -> None:
    """A repeated key is found before anything is made."""
    items.write_text("a\nb\na\n")

    outcome = call("init", "--dir", tmp_path / "shop", "--fleet", "shop", "--items", items)

    assert outcome.code == ExitCode.DATA_FORMAT
    assert outcome.sentence == (
        f"edge-aggregator: {items}, line 3: the item key 'a' stands in line 1 already"
    )
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize("missing", ["--dir", "--fleet", "--items"])
def test_init_needs_three_options(tmp_path: Path, items: Path, call: Call, missing: str) -> None:
    """Each is named when it is not there."""
    options = {"--dir": tmp_path / "shop", "--fleet": "shop", "--items": items}
    del options[missing]

    outcome = call("init", *(part for option in options.items() for part in option))

    assert outcome.code == ExitCode.USAGE
    assert f"Missing option '{missing}'" in outcome.stderr


def test_second_init_changes_nothing(shop: Path, items: Path, call: Call) -> None:
    """It has a code of its own, so that scripts can tell."""
    before = everything_below(shop)

    outcome = call("init", "--dir", shop, "--fleet", "other", "--items", items)

    assert outcome.code == ExitCode.ALREADY_INITIALISED
    assert "was set up before" in outcome.sentence
    assert everything_below(shop) == before


def test_init_where_no_directory_can_be_is_named(tmp_path: Path, items: Path, call: Call) -> None:
    """A path below a file, and a file itself."""
    below = call("init", "--dir", items / "shop", "--fleet", "shop", "--items", items)
    itself = call("init", "--dir", items, "--fleet", "shop", "--items", items)

    assert below.code == ExitCode.NOT_WRITABLE
    assert "not a directory" in below.sentence
    assert itself.code == ExitCode.USAGE
    assert "is a file" in itself.stderr


# --- status and rounds -------------------------------------------------------------------------------


def test_status_of_a_new_directory(shop: Path, call: Call) -> None:
    """A fact a line."""
    outcome = call("status", "--dir", shop)

    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.splitlines() == [
        "fleet    shop",
        "running  no",
        "version  0",
        "items    3",
        "dim      3",
        "devices  0",
        "updates  0 counted, 0 pending, 0 stale, 0 rejected, 0 duplicates, 0 refused, 0 dropped",
    ]


def test_status_tells_what_became_of_all_updates(shop: Path, call: Call) -> None:
    """The same facts as JSON, for programs."""
    add_history(shop)

    facts = json.loads(call("status", "--dir", shop, "--json").stdout)

    store = open_store(shop)
    digest = store.rounds(1)[0].sha256.hex()
    store.close()
    assert facts == {
        "fleet": "shop",
        "running": False,
        "version": 2,
        "sha256": digest,
        "items": 6,
        "dim": 3,
        "devices": 2,
        "updates": {
            "counted": 3,
            "pending": 1,
            "stale": 1,
            "rejected": 0,
            "duplicates": 3,
            "refused": 2,
            "dropped": 0,
        },
    }
    assert digest in call("status", "--dir", shop).stdout


def test_status_of_a_served_directory_says_so(shop: Path, call: Call) -> None:
    """A look from outside does not disturb who serves."""
    with exclusive(shop):
        assert "running  yes" in call("status", "--dir", shop).stdout
        assert json.loads(call("status", "--dir", shop, "--json").stdout)["running"] is True


def test_rounds_before_the_first_one(shop: Path, call: Call) -> None:
    """No table of nothing; an empty list for programs."""
    outcome = call("rounds", "--dir", shop)

    assert (outcome.code, outcome.sentence) == (0, "no round has been closed yet")
    assert json.loads(call("rounds", "--dir", shop, "--json").stdout) == []


def test_rounds_are_listed_newest_first(shop: Path, call: Call) -> None:
    """A line for each, with its time in UTC."""
    add_history(shop)

    outcome = call("rounds", "--dir", shop)

    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.splitlines() == [
        "version  updates  closed by  staleness      bytes up  closed at (UTC)      guard    HR@10",
        "      2        1  deadline        0.00           200  2023-11-14 22:13:20",
        "      1        2  buffer          1.50           200  2023-11-14 22:13:20",
    ]


def test_rounds_as_json_have_all_figures(shop: Path, call: Call) -> None:
    """As many as were asked for."""
    add_history(shop)

    (newest,) = json.loads(call("rounds", "--dir", shop, "--json", "--limit", 1).stdout)

    assert newest.pop("sha256") == json.loads(call("status", "--dir", shop, "--json").stdout)["sha256"]
    assert newest == {
        "version": 2,
        "updates": 1,
        "staleness_mean": 0.0,
        "bytes_up": 200,
        "by_deadline": True,
        "closed_at": 1_700_000_000.0,
        "catalogue_changed": False,
        "kind": "round",
        "source": None,
        "population": None,
        "strategy": None,
        "dropped": 0,
        "quality": None,
    }


def test_rounds_limit_must_be_positive(shop: Path, call: Call) -> None:
    """None are not asked for."""
    assert call("rounds", "--dir", shop, "--limit", 0).code == ExitCode.USAGE


# --- directories that are not as they should be ------------------------------------------------------

needs_a_directory = pytest.mark.parametrize("command", ["start", "status", "rounds"])


@needs_a_directory
def test_directory_that_was_not_set_up_names_init(tmp_path: Path, call: Call, command: str) -> None:
    """The sentence is the command to run."""
    outcome = call(command, "--dir", tmp_path / "nowhere")

    assert outcome.code == ExitCode.NOT_INITIALISED
    assert "edge-aggregator init --dir" in outcome.sentence
    assert not (tmp_path / "nowhere").exists()


@needs_a_directory
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fleet = ", "not valid TOML"),
        ('fleet = "shop"\nbufer = 3\n', "unknown entry 'bufer'"),
        ('fleet = "shop"\nbuffer = "3"\n', "buffer must be a whole number"),
        ('fleet = "shop"\nbuffer = 0\n', "buffer is 0"),
    ],
)
def test_wrong_configuration_is_named(shop: Path, call: Call, command: str, text: str, said: str) -> None:
    """A mistake in the file never gets as far as the database."""
    (shop / CONFIG_NAME).write_text(text)

    outcome = call(command, "--dir", shop)

    assert outcome.code == ExitCode.CONFIG
    assert said in outcome.sentence


@needs_a_directory
def test_wrong_variable_is_named(
    shop: Path, call: Call, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in the environment is not looked for in the file."""
    monkeypatch.setenv("PFEDREC_BUFFER", "many")

    outcome = call(command, "--dir", shop)

    assert outcome.code == ExitCode.CONFIG
    assert "PFEDREC_BUFFER" in outcome.sentence


@pytest.mark.parametrize("command", ["status", "rounds"])
def test_damaged_database_is_named(shop: Path, call: Call, command: str) -> None:
    """What cannot be read is not overwritten."""
    (shop / DATABASE_NAME).write_bytes(b"what is this " * 100)
    before = everything_below(shop)

    outcome = call(command, "--dir", shop)

    assert outcome.code == ExitCode.CORRUPT
    assert "is damaged" in outcome.sentence
    assert everything_below(shop) == before


@pytest.mark.parametrize("command", ["status", "rounds"])
def test_newer_database_is_left_untouched(shop: Path, call: Call, command: str) -> None:
    """An older release keeps its hands off."""
    with closing(sqlite3.connect(shop / DATABASE_NAME)) as connection, connection:
        connection.execute("INSERT INTO migrations (name) VALUES ('9999 later')")
    before = everything_below(shop)

    outcome = call(command, "--dir", shop)

    assert outcome.code == ExitCode.NEWER_VERSION
    assert "upgrade pfedrec-edge" in outcome.sentence
    assert everything_below(shop) == before


@pytest.mark.parametrize("saved", [DUMPS[2], DUMPS[-2]], ids=lambda saved: saved.stem)
@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("rounds",),
        ("fsck",),
        ("backup", "copy"),
        ("export", "--rounds", "copy"),
        ("items", "add", "items.txt"),
        ("rollback", "1"),
        ("rollback", "77"),
        ("import", "items.txt"),
    ],
    ids=" ".join,
)
def test_all_but_start_and_restore_leave_an_earlier_releases_database(
    shop: Path, call: Call, command: tuple[str, ...], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of that release may serve from it, and would end; and the way back would be barred."""
    (shop / DATABASE_NAME).unlink()
    restore_dump(saved.read_text(), shop / DATABASE_NAME)
    (shop.parent / "items.txt").write_text("new\n")
    monkeypatch.chdir(shop.parent)
    before = everything_below(shop)

    outcome = call(*command, "--dir", shop)

    assert outcome.code == ExitCode.EARLIER_VERSION
    assert "edge-aggregator start brings it up to date" in outcome.sentence
    assert everything_below(shop) == before
    open_store(shop).close()  # as start does
    assert call("status", "--dir", shop).code == ExitCode.OK


def test_lost_database_is_named(shop: Path, call: Call) -> None:
    """It is not replaced by an empty one."""
    (shop / DATABASE_NAME).unlink()

    assert call("status", "--dir", shop).code == ExitCode.CORRUPT
    assert not (shop / DATABASE_NAME).exists()


def test_missing_extra_names_the_command(shop: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SQLAlchemy there is a sentence with what to install."""
    for name in list(sys.modules):
        if (
            name.split(".")[0] == "sqlalchemy"
            or name == "broker.aggregator.directory"
            or name.startswith("broker.aggregator.store")
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    outcome = call("status", "--dir", shop)

    assert outcome.code == ExitCode.MISSING_EXTRA
    assert "pip install 'pfedrec-edge[aggregator]'" in outcome.sentence


# --- start -------------------------------------------------------------------------------------------


def test_start_in_a_served_directory_is_refused(shop: Path, call: Call) -> None:
    """Two aggregators never share a directory."""
    with exclusive(shop):
        outcome = call("start", "--dir", shop, "--broker", "mqtt://127.0.0.1:1")

    assert outcome.code == ExitCode.IN_USE
    assert "in use by another process" in outcome.sentence


def test_start_on_a_taken_port_is_named(shop: Path, call: Call) -> None:
    """Our own broker needs one that is free."""
    with ScriptedBroker(5) as scripted:
        outcome = call("start", "--dir", shop, "--broker", "embedded", "--port", scripted.address.port)

    assert outcome.code == ExitCode.BROKER_START
    assert "address already in use" in outcome.sentence


def test_start_with_a_broker_that_refuses_ends(shop: Path, call: Call) -> None:
    """The service retries what can pass, and this cannot."""
    with ScriptedBroker(5) as scripted:
        outcome = call("start", "--dir", shop, "--broker", scripted.address)

    assert outcome.code == ExitCode.REFUSED
    assert "refuses the aggregator: not authorized" in outcome.sentence


@pytest.mark.parametrize("broker", ["emqx", "mqtt://me:s3cret@"])
def test_start_with_a_wrong_address_does_not_show_its_password(shop: Path, call: Call, broker: str) -> None:
    """What is no address is named, without what may be secret."""
    outcome = call("start", "--dir", shop, "--broker", broker)

    assert outcome.code in (ExitCode.USAGE, ExitCode.CONFIG)
    assert "write mqtt://HOST:PORT" in outcome.sentence
    assert "s3cret" not in outcome.sentence


@pytest.fixture
def stop_soon() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Give a way to do something on a thread and then to send this process SIGTERM."""
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def after(action: Callable[[], None]) -> None:
        def run() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - raised again by the fixture
                failures.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield after
    for thread in threads:
        thread.join(PATIENCE_S)
    if failures:
        raise failures[0]


@pytest.mark.mqtt
@pytest.mark.parametrize(("broker", "named"), [("embedded", "amqtt"), ("mosquitto", "mosquitto")])
def test_start_serves_on_its_own_broker_until_it_is_told_to_stop(
    shop: Path,
    call: Call,
    stop_soon: Callable[[Callable[[], None]], None],
    broker: str,
    named: str,
) -> None:
    """Devices are served, and SIGTERM ends both with code 0."""
    if broker == "mosquitto":
        require("mosquitto")
    port = free_port()
    answered: list[str] = []

    def talk() -> None:
        with Device(BrokerAddress(host="127.0.0.1", port=port), "shop") as device:
            head = device.head()
            device.table(head)
            update = an_update(instance=head.instance)
            answered.append(device.send(update).verdict)

    stop_soon(talk)
    outcome = call("start", "--dir", shop, "--broker", broker, "--port", port)

    assert (outcome.code, outcome.stdout) == (0, "")
    assert len(answered) == 1
    assert outcome.stderr.splitlines() == [
        f"{named} listens on 127.0.0.1:{port}; devices use --broker mqtt://127.0.0.1:{port}",
        "stopped",
    ]
    assert json.loads(call("status", "--dir", shop, "--json").stdout)["devices"] == 1


@pytest.mark.mqtt
@pytest.mark.process
def test_start_takes_items_while_it_runs_and_stops_at_ctrl_c_with_code_zero(
    shop: Path, mosquitto: RunningBroker, call: Call, tmp_path: Path
) -> None:
    """A service that is stopped has done its work."""
    file = tmp_path / "new.txt"
    file.write_text("new\n")
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "broker.aggregator.cli",
            "start",
            "--dir",
            str(shop),
            "--broker",
            mosquitto.url,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        with Device(mosquitto.address, "shop") as device:
            head = device.head()
            said = call("items", "add", "--dir", shop, file).stderr
            assert said == f"1 items to add: made with version {head.version + 1}\n"
            assert device.head(lambda each: each.version > head.version).rows == head.rows + 1
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, stdout) == (0, "")
    assert stderr.splitlines()[-1] == "stopped"


@pytest.mark.process
def test_start_waits_for_a_broker_that_does_not_answer(shop: Path) -> None:
    """A service retries what can pass: one sentence, and it still stops when told to."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "broker.aggregator.cli", "start", "--dir", str(shop)),
            *("--broker", f"mqtt://127.0.0.1:{free_port()}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE_S)

    assert line.endswith("trying again until it is back\n")
    assert (process.returncode, rest) == (0, "stopped\n")


def test_items_of_a_file_whose_name_is_no_utf_8_are_taken(shop: Path, call: Call, tmp_path: Path) -> None:
    """Names of files are bytes."""
    file = tmp_path / os.fsdecode(b"new\xff.txt")
    file.write_text("new\n")

    assert call("items", "add", "--dir", shop, file).code == 0

    again = call("items", "add", "--dir", shop, file)
    assert (again.code, "new\\xff.txt" in again.sentence) == (ExitCode.DATA_FORMAT, True)


def test_items_are_queued_while_no_aggregator_runs(shop: Path, call: Call, tmp_path: Path) -> None:
    """The next start makes them; a file with a mistake is refused with its own code and changes nothing."""
    file = tmp_path / "new.txt"
    file.write_text("new\n")
    assert "queued; it is made when the aggregator starts" in call("items", "add", "--dir", shop, file).stderr
    again = call("items", "add", "--dir", shop, file)
    assert again.code == ExitCode.DATA_FORMAT
    assert "line 1" in again.sentence
    file.write_text("nobody\n")
    unknown = call("items", "retire", "--dir", shop, file)
    assert (unknown.code, "nothing was changed" in unknown.sentence) == (ExitCode.UNKNOWN_ITEM, True)
    assert call("items", "rename", "--dir", shop, tmp_path / "none").code == ExitCode.FILE_UNREADABLE
    store = open_store(shop)
    assert [change.items for _, change in store.queued_changes()] == [(("new",),)]
    store.close()
