"""Devices that send something else than they learned, and devices of different speeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from broker.protocol.encodings import ENCODINGS
from edge.fleet.byzantine import ATTACKS, Attack, attacked, attackers
from edge.fleet.cli import cli
from edge.fleet.speeds import pass_factors
from tests.broker.aggregator.builders import DIM, N_ITEMS, a_change, an_update
from trainer.errors import ParameterError


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_attack_keeps_rows_and_has_its_strength(attack: Attack, encoding: str) -> None:
    """The same rows; the length is `strength` times the honest one, the direction as the attack says."""
    update = an_update(change=a_change(3, n_rows=6), encoding=encoding)

    harmful = attacked(update, attack, 4.0, (N_ITEMS, DIM), np.random.default_rng(1))

    honest, sent = (ENCODINGS[encoding].decode(each.body, N_ITEMS, DIM) for each in (update, harmful))
    np.testing.assert_array_equal(sent.rows, honest.rows)
    lengths = [float(np.linalg.norm(each.change)) for each in (honest, sent)]
    assert lengths[1] == pytest.approx(4.0 * lengths[0], rel=0.02)
    cosine = float(np.vdot(honest.change, sent.change)) / (lengths[0] * lengths[1])
    assert {"sign-flip": cosine < -0.99, "scale": cosine > 0.99, "random": abs(cosine) < 0.9}[attack]


def test_attackers_are_a_share_drawn_from_the_seed() -> None:
    """As many as the share says, the same for the same seed."""
    drawn = attackers(0.1, 943, 4)

    assert len(set(drawn.tolist())) == 94
    np.testing.assert_array_equal(drawn, attackers(0.1, 943, 4))
    assert attackers(0.0, 10, 1).size == 0
    with pytest.raises(ParameterError, match="Byzantine"):
        attackers(1.5, 10, 1)


def test_speeds_have_a_tenth_of_stragglers() -> None:
    """Median one, a tail; none of it without a spread."""
    factors = pass_factors(0.5, 10_000, 1)

    assert np.median(factors) == pytest.approx(1.0, rel=0.2)
    assert 0.08 < (factors > 4.0).mean() < 0.12
    assert (pass_factors(0.0, 5, 1) == 1.0).all()
    with pytest.raises(ParameterError, match="spread of speeds"):
        pass_factors(4.0, 5, 1)


@pytest.mark.parametrize("mode", ["sync", "buffered"])
def test_command_simulates_attacks_and_strategies(mode: str, tmp_path: Path) -> None:
    """Options reach the run and its folder; the same options give the same run."""
    figures = []
    for name in ("a", "b"):
        arguments = ["simulate", "--data", "synthetic:30x300x20", "--protocol", "clean", "--mode", mode]
        arguments += ["--rounds", "2", "--buffer", "8", "--byzantine", "0.2", "--attack", "random"]
        arguments += ["--strength", "3", "--speeds", "0.5", "--robust", "--server", "server_optimiser=yogi"]
        done = CliRunner().invoke(cli, [*arguments, "--json", "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        figures.append((tmp_path / name / "model.npz").read_bytes())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["aggregation"]["server_optimiser"] == "yogi"
    assert config["aggregation"]["strategy"] == {"sync": "fedavg", "buffered": "fedbuff"}[mode]
    assert (config["byzantine"], config["attack"], config["strength"]) == (0.2, "random", 3.0)
    assert figures[0] == figures[1]


def test_unknown_server_setting_is_named(tmp_path: Path) -> None:
    """A typing error lists what there is."""
    arguments = [
        "simulate",
        "--data",
        "synthetic:30x300x20",
        "--protocol",
        "clean",
        "--server",
        "clup=1",
        "--out",
        str(tmp_path / "x"),
    ]
    done = CliRunner().invoke(cli, arguments)

    assert done.exit_code != 0
    assert "clip_to_median" in str(done.exception) + done.output
