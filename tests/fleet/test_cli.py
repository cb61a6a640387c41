"""``edge-fleet``: what it prints and leaves; a wrong call leaves a sentence, a code, and nothing else.

Of ``run`` this file has what needs no broker; `test_run.py` has the rest.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.exit_codes import ExitCode
from edge.fleet import mqtt
from edge.fleet.cli import cli as commands
from tests.broker.test_storage import as_an_ordinary_user
from tests.brokers import HOST, PATIENCE_S, ScriptedBroker
from tests.datasets import ml_100k
from tests.edge.running import wait_until
from tests.fleet.builders import RUN_FILES, Call, Outcome, files_of, recompute, write_ratings

COMMANDS = sorted(commands.commands)
TRAINING = ("run", "simulate")
MAKING = [name for name in COMMANDS if name not in ("report", "table")]
"""Commands that make a folder from data; the others read folders."""
QUICK = ("--protocol", "clean", "--rounds", 3, "--dim", 8)
FIGURES = r"HR@10 [01]\.\d{4}, NDCG@10 [01]\.\d{4}"


def simulate(call: Call, out: Path, *options: object, data: object = "synthetic") -> Outcome:
    """Run a few rounds; they must succeed."""
    found = call("simulate", "--data", data, *QUICK, "--out", out, *options)
    assert found.code == ExitCode.OK, found.err
    return found


def assert_refused(found: Outcome, code: ExitCode, *words: str) -> None:
    """Check the code, and that there is one sentence with these words on stderr and nothing on stdout."""
    assert (found.code, found.out) == (code, "")
    for word in words:
        assert word in found.err
    if "Usage:" not in found.err:
        assert re.fullmatch(r"(protocol clean: [^\n]+\n)?edge-fleet: [^\n]+\n", found.err)


def facts_of(found: Outcome) -> dict[str, str]:
    """Give the names and values that were printed."""
    pairs = (re.split(r" {2,}", line, maxsplit=1) for line in found.out.splitlines())
    return {name: value for name, value in pairs}  # noqa: C416 - checks that each line is a pair


def summary_in(out: Path) -> dict[str, Any]:
    """Read a run's summary."""
    content: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return content


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(call: Call, command: str) -> None:
    """One that can be typed as it stands, if the file is there."""
    found = call(command, "--help")

    assert found.code == ExitCode.OK
    assert f"  edge-fleet {command}{' --data' * (command in MAKING)}" in found.out


def test_help_names_all_commands(call: Call) -> None:
    """With an example for each that makes something."""
    found = call("-h")

    assert found.code == ExitCode.OK
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", found.out, re.MULTILINE)
        assert f"  edge-fleet {command} --data synthetic" in found.out or command not in MAKING


def test_version_is_the_packages(call: Call) -> None:
    """As installed."""
    assert package_version("pfedrec-edge") in call("--version").out


# -- what simulate prints and leaves ---------------------------------------------------------------


def test_simulate_prints_the_figures_of_its_summary(call: Call, tmp_path: Path) -> None:
    """A fact a line on stdout; progress is on stderr."""
    out = tmp_path / "run"

    found = simulate(call, out)

    facts, summary = facts_of(found), summary_in(out)
    assert list(facts) == [
        "data", "best round", "own table", "shared table", "popularity", "full ranking",
        "an update reveals", "seconds a round", "bytes an update", "peak memory", "folder",
    ]  # fmt: skip
    assert (
        facts["data"] == f"synthetic: 200 users, 400 items, {summary['dataset']['interactions']} interactions"
    )
    assert facts["best round"] == f"{summary['best_round']} of 3 by validation"
    for name, view, ranking in (
        ("own table", "own", "sampled"),
        ("shared table", "shared", "sampled"),
        ("full ranking", "own", "full"),
    ):
        figures = summary["test"][view][ranking]
        assert facts[name] == f"HR@10 {figures['hr@10']:.4f}, NDCG@10 {figures['ndcg@10']:.4f}"
    assert re.fullmatch(FIGURES, facts["popularity"])
    assert facts["folder"] == str(out)
    assert re.fullmatch(r"3/3 rounds, 0 s left, HR@10 [01]\.\d{3}\n", found.err)
    assert files_of(out) == RUN_FILES


def test_json_is_the_summary_and_the_baseline(call: Call, tmp_path: Path) -> None:
    """One document on stdout."""
    found = simulate(call, tmp_path / "run", "--json")

    printed = json.loads(found.out)
    popularity = printed.pop("popularity")
    assert printed == summary_in(tmp_path / "run")
    assert set(popularity) == {"hr@10", "ndcg@10"}
    assert 0.0 < popularity["ndcg@10"] <= popularity["hr@10"] < 1.0


def test_config_has_all_that_is_needed_to_repeat_the_run(call: Call, tmp_path: Path) -> None:
    """The options as they took effect."""
    data = write_ratings(tmp_path / "ratings.csv")
    options = ("--mode", "buffered", "--buffer", 4, "--max-staleness", 3, "--encoding", "int8")
    simulate(call, tmp_path / "run", *options, "--item-lr", 123.5, "--seed", 9, data=data)

    config = json.loads((tmp_path / "run" / "config.json").read_text())

    assert config["packages"].keys() >= {"python", "pfedrec-edge", "numpy"}
    assert len(config.pop("data_sha256")) == 64
    assert config.pop("packages")["numpy"] == np.__version__
    assert config == {
        "command": "simulate",
        "data": str(data),
        "preset": "device",
        "protocol": "clean",
        "hold_out": "last",
        "algorithm": "pfedrec",
        "hyperparameters": {"lr": 0.1, "item_lr": 123.5, "negatives": 8, "batch_size": 256, "decay": 0.1},
        "taste": {"recency": 2.0, "strength": 1.0},
        "mode": "buffered",
        "buffer": 4,
        "max_staleness": 3,
        "encoding": "int8",
        "aggregation": {
            "strategy": "fedbuff",
            "staleness_exponent": 0.5,
            "mixing": 0.0,
            "clip": 0.0,
            "clip_to_median": 0.0,
            "similarity": 0.0,
            "robust": "none",
            "trim": 0.1,
            "server_optimiser": "none",
            "server_lr": 0.1,
            "step_encoding": "float32",
        },
        "byzantine": 0.0,
        "attack": "sign-flip",
        "strength": 1.0,
        "speeds": 0.0,
        "rounds": 3,
        "dim": 8,
        "scale": 0.1,
        "noise": 0.0,
        "select_by": "ndcg",
        "seed": 9,
    }
    summary = summary_in(tmp_path / "run")
    assert (summary["mode"], summary["encoding"], summary["seed"]) == ("buffered", "int8", 9)


def test_protocol_that_was_not_chosen_is_clean_and_said_so(call: Call, tmp_path: Path) -> None:
    """The honest one."""
    found = call("simulate", "--data", "synthetic", "--rounds", 1, "--out", tmp_path / "run")

    assert found.code == ExitCode.OK
    assert found.err.startswith("protocol clean: held-out items may be drawn as negatives")
    assert summary_in(tmp_path / "run")["protocol"] == "clean"


def test_same_call_gives_the_same_files(call: Call, tmp_path: Path) -> None:
    """Arrays to the last byte; another seed gives others."""
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        simulate(call, tmp_path / name, "--seed", seed, "--save-users")

    for file in ("model.npz", "users.npz", "candidates.npz"):
        one, again, other = ((tmp_path / n / file).read_bytes() for n in ("one", "again", "other"))
        assert one == again != other
    assert summary_in(tmp_path / "one")["test"] == summary_in(tmp_path / "again")["test"]


def test_overwrite_replaces_a_run(call: Call, tmp_path: Path) -> None:
    """Whole: no file is left of the one before."""
    simulate(call, tmp_path / "run", "--save-users", "--seed", 1)

    simulate(call, tmp_path / "run", "--overwrite", "--seed", 2)

    assert files_of(tmp_path / "run") == RUN_FILES
    assert summary_in(tmp_path / "run")["seed"] == 2


# -- the figures, recomputed by others -------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("mode", ["sync", "buffered"])
def test_recompute_finds_the_same_figures(call: Call, tmp_path: Path, mode: str) -> None:
    """Of both views, from the files alone, without this project."""
    out = tmp_path / "run"
    simulate(call, out, "--save-users", "--mode", mode)

    found = recompute(out)

    assert (found.code, found.err) == (0, "")
    *lines, last = found.out.splitlines()
    sampled = {view: summary_in(out)["test"][view]["sampled"] for view in ("own", "shared")}
    assert [line.split() for line in lines] == [
        [view, "sampled", name, f"{value:.6f}", f"{value:.6f}", "same"]
        for view, figures in sampled.items()
        for name, value in figures.items()
    ]
    assert "--data" in last


@pytest.mark.process
@pytest.mark.parametrize(
    ("separator", "header"),
    [
        (",", ""),
        (",", "userId,movieId,rating,timestamp"),
        ("\t", ""),
        ("\t", "user_id\titem_id\trating\ttime"),
        ("::", ""),
        ("::", "user::item::weight::timestamp"),
        (" ", ""),
    ],
)
def test_recompute_finds_the_full_ranking_from_the_data(
    call: Call, tmp_path: Path, separator: str, header: str
) -> None:
    """By its own reading: repeated pairs, equal times, users with too few interactions, any order."""
    data = write_ratings(tmp_path / "ratings.dat", separator=separator, header=header)
    simulate(call, tmp_path / "run", "--save-users", data=data)

    found = recompute(tmp_path / "run", "--data", data)

    assert (found.code, found.err) == (0, "")
    assert len(found.out.splitlines()) == 2 * 2 * 6
    assert all(line.endswith(" same") for line in found.out.splitlines())


@pytest.mark.process
def test_recompute_draws_the_held_out_items_again_where_there_are_no_times(
    call: Call, tmp_path: Path
) -> None:
    """From the seed in the config: items that another seed holds out are not taken."""
    data = write_ratings(tmp_path / "ratings.dat", timed=False)
    out = tmp_path / "run"
    simulate(call, out, "--save-users", "--seed", 5, data=data)
    config = json.loads((out / "config.json").read_text())

    found = recompute(out, "--data", data)
    (out / "config.json").write_text(json.dumps(config | {"seed": 6}))
    refused = recompute(out, "--data", data)

    assert config["hold_out"] == "random"
    assert (found.code, found.err) == (0, "")
    assert len(found.out.splitlines()) == 2 * 2 * 6
    assert all(line.endswith(" same") for line in found.out.splitlines())
    assert (refused.code, refused.out) == (2, "")
    assert "are not the ones that the run has" in refused.err


@pytest.mark.process
def test_recompute_finds_a_figure_that_is_wrong(call: Call, tmp_path: Path) -> None:
    """One that differs by more than a millionth is named, and the exit code says so."""
    out = tmp_path / "run"
    simulate(call, out, "--save-users")
    summary = summary_in(out)
    summary["test"]["shared"]["sampled"]["ndcg@10"] += 2e-6
    (out / "summary.json").write_text(json.dumps(summary))

    found = recompute(out)

    assert found.code == 1
    assert [line.split()[:3] for line in found.out.splitlines() if line.endswith("DIFFERS")] == [
        ["shared", "sampled", "ndcg@10"]
    ]


@pytest.mark.process
def test_recompute_notices_a_changed_table(call: Call, tmp_path: Path) -> None:
    """The figures are those of the arrays, not of anything else in the folder."""
    out = tmp_path / "run"
    simulate(call, out, "--save-users")
    with np.load(out / "model.npz") as model:
        np.savez(out / "model.npz", E=model["E"][::-1], item_keys=model["item_keys"])

    assert recompute(out).code == 1


@pytest.mark.process
@pytest.mark.parametrize("algorithm", ["fedncf", "fedncf+dualper"])
def test_recompute_refuses_a_neural_network(call: Call, tmp_path: Path, algorithm: str) -> None:
    """Rather than call every figure wrong."""
    out = tmp_path / "run"
    simulate(call, out, "--save-users", "--preset", "paper", "--algorithm", algorithm)

    found = recompute(out)

    assert (found.code, found.out) == (2, "")
    assert "neural network" in found.err


@pytest.mark.process
def test_recompute_adds_the_shift_of_an_own_view(call: Call, tmp_path: Path) -> None:
    """A run may hold one: in logits, added to the own scores, not to the shared ones."""
    out = tmp_path / "run"
    simulate(call, out, "--save-users", "--preset", "paper")
    with np.load(out / "users.npz") as users, np.load(out / "candidates.npz") as candidates:
        shift = np.zeros((200, 400), dtype=np.float32)
        np.put_along_axis(shift, candidates["test"][:, :1], np.float32(1e6), axis=1)
        np.savez(out / "users.npz", **users, shift=shift)

    lines = [line.split() for line in recompute(out).out.splitlines()[:12]]

    assert [line[3] for line in lines[:6]] == ["1.000000"] * 6
    assert [line[-1] for line in lines[6:]] == ["same"] * 6


@pytest.mark.process
def test_recompute_says_what_it_needs(call: Call, tmp_path: Path) -> None:
    """A run with its users, and the file that it was made from."""
    data = write_ratings(tmp_path / "ratings.csv")
    simulate(call, tmp_path / "without", data=data)
    simulate(call, tmp_path / "with", "--save-users", data=data)
    other = write_ratings(tmp_path / "other.csv", seed=2)

    for arguments in ((tmp_path / "without",), (tmp_path / "with", "--data", other), (tmp_path / "no",)):
        found = recompute(*arguments)
        assert (found.code, found.out) == (2, "")
        assert "was the run made with --save-users, from this data?" in found.err


# -- wrong calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", MAKING)
@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, ExitCode.FILE_UNREADABLE, ("ratings.csv cannot be read", "no such file")),
        (b"", ExitCode.DATA_FORMAT, ("ratings.csv", "the file is empty")),
        (b"\x7fELF\0\0\1", ExitCode.DATA_FORMAT, ("ratings.csv, line 1", "binary")),
        (b"u1,i1,5,1\nu1,i2,5,2\nu1,i3,five,3\n", ExitCode.DATA_FORMAT, ("ratings.csv, line 3", "'five'")),
        (b"u1,i1,5,1\n\nu1,i2,5\n", ExitCode.DATA_FORMAT, ("ratings.csv, line 3", "3 fields")),
        (b"u1,i1\nu1,i2\n", ExitCode.DATA_TOO_SMALL, ("ratings.csv", "10 interactions")),
        (b"".join(b"u1,i%d\n" % i for i in range(60)), ExitCode.DATA_TOO_SMALL, ("99 items",)),
    ],
    ids=["missing", "empty", "binary", "no number", "too few fields", "few interactions", "few items"],
)
def test_file_that_is_no_use_is_a_sentence_and_a_code(
    call: Call, tmp_path: Path, command: str, content: bytes | None, code: ExitCode, words: tuple[str, ...]
) -> None:
    """With the line, where there is one; nothing is written."""
    if content is not None:
        (tmp_path / "ratings.csv").write_bytes(content)

    found = call(command, "--data", tmp_path / "ratings.csv", "--out", tmp_path / "out")

    assert_refused(found, code, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", TRAINING)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--no-such",), ("No such option",)),
        (("--protocol", "honest"), ("--protocol", "'honest'")),
        (("--encoding", "float64"), ("--encoding", "'float64'")),
        (("--set", "lr"), ("--set", "KEY=VALUE")),
        (("--set", "lr=high"), ("lr must be a number",)),
        (("--set", "speed=1"), ("unknown entry 'speed'",)),
        (("--buffer", 0), ("--buffer", "0")),
        (("--buffer", 1_000_001), ("1000001",)),
        (("--max-staleness", -1), ("--max-staleness", "-1")),
        (("--max-staleness", 100_001), ("max_staleness is 100001",)),
        (("--dim", 0), ("--dim", "0")),
        (("--dim", 1025), ("--dim", "1025")),
        (("--item-lr", 0), ("--item-lr", "0")),
        (("--item-lr", "1e10"), ("item_lr is 10000000000.0",)),
        (("--item-lr", "nan"), ("item_lr is nan",)),
        (("--seed", -1), ("--seed", "-1")),
        (("--seed", "x"), ("--seed", "'x'")),
    ],
)
def test_option_out_of_range_is_a_sentence_and_changes_nothing(
    call: Call, tmp_path: Path, command: str, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """Both commands know the same ones."""
    mode = ("--mode", "buffered") if command == "simulate" else ()

    found = call(command, "--data", "synthetic", "--out", tmp_path / "out", *mode, *options)

    assert_refused(found, ExitCode.USAGE, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rounds", 0), ("--rounds", "0")),
        (("--mode", "async"), ("--mode", "'async'")),
        (("--mode", "buffered", "--buffer", 201), ("buffer is 201; it must be at most 200",)),
        (("--algorithm", "fedprox"), ("--algorithm", "'fedprox'")),
        (("--algorithm", "fedmf"), ("a view by taste", "--preset paper")),
        (("--algorithm", "fedmf", "--preset", "paper", "--mode", "buffered"), ("no algorithm of devices",)),
        (("--algorithm", "ease", "--encoding", "int8"), ("ease has no fleet",)),
        (("--mode", "buffered", "--workers", 2), ("--workers",)),
        (("--mode", "buffered", "--resume"), ("--resume",)),
        (("--mode", "buffered", "--set", "noise=1"), ("noise",)),
        (("--set", "noise=-1"), ("noise is -1.0",)),
    ],
)
def test_option_of_simulate_out_of_range(
    call: Call, tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """A sentence; nothing is written."""
    found = call("simulate", "--data", "synthetic", "--out", tmp_path / "out", *options)

    assert_refused(found, ExitCode.USAGE, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--versions", 0), ("--versions", "0")),
        (("--devices", 0), ("--devices", "0")),
        (("--concurrency", 0), ("--concurrency", "0")),
        (("--deadline", 0), ("--deadline", "0.01")),
        (("--deadline", 31), ("--deadline", "31")),
        (("--deadline", "nan"), ("nan",)),
        (("--port", 70_000), ("--port", "70000")),
        (("--fleet", "a/b"), ("--fleet", "a/b")),
        (("--broker", "http://127.0.0.1"), ("'http://127.0.0.1' is no broker address", "mqtt://HOST:PORT")),
        (("--rounds", 3), ("No such option", "--rounds")),
    ],
)
def test_option_of_run_out_of_range(
    call: Call, tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """A sentence; nothing is written or started."""
    found = call("run", "--data", "synthetic", "--out", tmp_path / "out", *options)

    assert_refused(found, ExitCode.USAGE, *words)
    assert not (tmp_path / "out").exists()


def test_more_devices_than_users_are_refused(call: Call, tmp_path: Path) -> None:
    """The sentence has both numbers."""
    data = write_ratings(tmp_path / "ratings.csv", n_users=8)

    found = call("run", "--data", data, "--devices", 9, "--out", tmp_path / "out")

    assert_refused(found, ExitCode.USAGE, "9 devices were asked for; the data has 8 users")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", MAKING)
@pytest.mark.parametrize("missing", ["--data", "--out"])
def test_option_that_is_required_is_named(call: Call, tmp_path: Path, command: str, missing: str) -> None:
    """Data to learn from and a folder for the results."""
    given = {"--data": "synthetic", "--out": str(tmp_path / "out")}
    del given[missing]

    found = call(command, *(part for option in given.items() for part in option))

    assert_refused(found, ExitCode.USAGE, f"Missing option '{missing}'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", TRAINING)
def test_folder_that_holds_a_run_is_refused(call: Call, tmp_path: Path, command: str) -> None:
    """It stays as it is."""
    simulate(call, tmp_path / "run", "--seed", 1)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in RUN_FILES}

    found = call(command, "--data", "synthetic", "--out", tmp_path / "run", "--seed", 2)

    assert_refused(found, ExitCode.ALREADY_INITIALISED, "holds a run already", "--overwrite")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in RUN_FILES} == before


@pytest.mark.parametrize("command", MAKING)
def test_out_below_a_file_is_refused(call: Call, tmp_path: Path, command: str) -> None:
    """Before anything is trained or started."""
    (tmp_path / "file").write_bytes(b"kept")

    found = call(command, "--data", "synthetic", "--out", tmp_path / "file" / "run")

    assert_refused(found, ExitCode.NOT_WRITABLE, "file/run cannot be written", "not a directory")
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("command", MAKING)
def test_out_that_is_a_file_is_refused(call: Call, tmp_path: Path, command: str) -> None:
    """It stays what it is."""
    (tmp_path / "file").write_bytes(b"kept")

    found = call(command, "--data", "synthetic", "--out", tmp_path / "file")

    assert_refused(found, ExitCode.USAGE, "is a file")
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_out_of_somebody_else_is_refused(call: Call, tmp_path: Path) -> None:
    """With the reason."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    # The package itself may lie where an ordinary user cannot read it; now it is loaded.
    simulate(call, tmp_path / "ours")

    with as_an_ordinary_user():
        found = call("simulate", "--data", "synthetic", *QUICK, "--out", folder)

    assert_refused(found, ExitCode.NOT_WRITABLE, "theirs cannot be written: permission denied")
    assert files_of(folder) == set()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_training_that_diverges_is_a_sentence(call: Call, tmp_path: Path) -> None:
    """With the option to change."""
    found = call(
        "simulate", "--data", "synthetic", *QUICK, "--rounds", 30, "--item-lr", 1e9, "--out", tmp_path
    )

    assert (found.code, found.out) == (ExitCode.USAGE, "")
    assert "edge-fleet: the training diverges" in found.err
    assert "--item-lr" in found.err


# -- brokers that are not there --------------------------------------------------------------------


def test_broker_that_does_not_answer_is_a_sentence_and_writes_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one runs, the same call can be made again; no aggregator is started."""
    monkeypatch.setattr(mqtt, "BROKER_S", 0.2)
    with socket.socket() as taken:
        taken.bind((HOST, 0))  # nobody listens, and nobody else can
        address = f"mqtt://{HOST}:{taken.getsockname()[1]}"

        for _ in range(2):
            found = call("run", "--data", "synthetic", "--broker", address, "--out", tmp_path / "out")

            assert_refused(
                found, ExitCode.UNREACHABLE, f"no broker answers at {address} (connection refused)"
            )
    assert files_of(tmp_path / "out") == set()


def test_broker_whose_name_is_unknown_is_a_sentence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the resolver says, in words."""
    monkeypatch.setattr(mqtt, "BROKER_S", 0.0)

    found = call("run", "--data", "synthetic", "--broker", "mqtt://no.invalid", "--out", tmp_path / "out")

    assert_refused(found, ExitCode.UNREACHABLE, "no broker answers at mqtt://no.invalid:1883 (")
    assert "Errno" not in found.err


@pytest.mark.parametrize(("code", "reason"), [(4, "bad user name or password"), (5, "not authorized")])
def test_broker_that_refuses_is_a_sentence(call: Call, tmp_path: Path, code: int, reason: str) -> None:
    """Its reason is in it, the password is not."""
    with ScriptedBroker(code) as broker:
        address = f"mqtt://me:secret@{broker.address.host}:{broker.address.port}"
        found = call("run", "--data", "synthetic", "--broker", address, "--out", tmp_path / "out")

    assert_refused(found, ExitCode.REFUSED, reason, f"mqtt://me@{HOST}")
    assert "secret" not in found.err
    assert files_of(tmp_path / "out") == set()


def test_other_service_at_the_brokers_address_is_a_sentence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and says nothing that MQTT knows."""
    monkeypatch.setattr(mqtt, "BROKER_S", 0.2)
    with socket.create_server((HOST, 0)) as listener:
        address = f"mqtt://{HOST}:{listener.getsockname()[1]}"
        found = call("run", "--data", "synthetic", "--broker", address, "--out", tmp_path / "out")

    assert_refused(
        found, ExitCode.UNREACHABLE, f"what listens at {address} does not answer as an MQTT broker"
    )


def test_port_that_is_taken_is_a_sentence(call: Call, tmp_path: Path) -> None:
    """The aggregator says it; its last words are in the sentence."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        found = call("run", "--data", "synthetic", "--port", port, "--out", tmp_path / "out")

    assert (found.code, found.out) == (ExitCode.BROKER_START, "")
    last = found.err.splitlines()[-1]
    assert last.startswith("edge-fleet: the aggregator has ended; it said: edge-aggregator: ")
    assert f"127.0.0.1:{port}: address already in use; set another port" in last
    assert files_of(tmp_path / "out") == set()


# -- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_simulate_is_stopped_by_ctrl_c(tmp_path: Path) -> None:
    """With a documented code; the rounds that are done are kept."""
    out = tmp_path / "run"
    arguments = ["simulate", "--data", "synthetic", "--rounds", "1000000", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", "from edge.fleet.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as process:
        wait_until((out / "metrics.jsonl").exists, "the first round")
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == ExitCode.INTERRUPTED
    assert (printed, said.splitlines()[-1]) == ("", "edge-fleet: stopped by Ctrl-C")
    assert files_of(out) == {"config.json", "metrics.jsonl"}


# -- a real data set -------------------------------------------------------------------------------


@pytest.mark.dataset
def test_movielens_learns_in_three_rounds(call: Call, tmp_path: Path) -> None:
    """All of its users and items are there, and the own tables rank far better than chance, a tenth."""
    data = ml_100k()

    found = call(
        "simulate", "--data", data, "--protocol", "published", "--rounds", 3, "--out", tmp_path / "run"
    )

    assert found.code == ExitCode.OK
    summary = summary_in(tmp_path / "run")
    assert summary["dataset"] == {
        "name": "ml-100k/ratings.dat",
        "users": 943,
        "items": 1682,
        "interactions": 100_000,
    }
    assert summary["test"]["own"]["sampled"]["hr@10"] > 0.3
    assert summary["test"]["own"]["full"]["hr@10"] > 3 * 10 / 1682
