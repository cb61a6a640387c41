"""An exported project built, its self-test run on the board that QEMU plays, and what that says: the report.

Flash and RAM are the application's (app.c), without and with learning; stack and instructions are the
self-test's, which does the same work. Instructions are QEMU's count.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import Any

from broker.errors import AttentionError, InputError
from firmware_tools.c_export import Exported
from trainer.integers import QuantisedTable

_BUILD_S, _RUN_S = 300.0, 600.0
_FACT = re.compile(r"^([a-z_0-9]+) (\d+)$", flags=re.MULTILINE)
_OVERFLOW = re.compile(r"region `(\w+)' overflowed by (\d+) bytes|less than 1,024 bytes of RAM")


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one application.

    Attributes
    ----------
    flash : int
        Code, constants (the model with them) and initial values.
    static : int
        RAM that is reserved for good.
    stack : int
        The deepest use seen; 0 where it is not known.
    """

    flash: int
    static: int
    stack: int

    @property
    def ram(self) -> int:
        """All RAM."""
        return self.static + self.stack


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What building and running has shown.

    Attributes
    ----------
    scoring, learning : Memory or None
        The application without and with learning; None on the host, where sizes say nothing.
    instructions : mapping of str to int
        ``ranking`` of the whole catalogue, one ``logit``, one ``pass``, one ``update`` encoded as
        factored-int8, and as ``rows`` in int8.
    facts : mapping of str to int
        All numbers that the self-test printed.
    update : bytes
        The update message that it encoded.
    """

    scoring: Memory | None
    learning: Memory | None
    instructions: dict[str, int] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    update: bytes = b""


def build(exported: Exported) -> None:
    """Compile and link.

    Raises
    ------
    InputError
        When the model does not fit the board.
    AttentionError
        When the compiler refuses.
    """
    done = _make(exported, "all", _BUILD_S)
    if done.returncode == 0:
        return
    overflow = _OVERFLOW.search(done.stdout)
    if overflow is not None:
        by = f"by {overflow[2]} bytes of {overflow[1]}" if overflow[1] else "with its RAM"
        raise InputError(
            f"the model does not fit {exported.target.name} ({exported.target.board}) {by}; "
            "give --quant int8, or fewer items with --items"
        )
    lines = [line for line in done.stdout.splitlines() if "rror" in line] or ["make failed"]
    raise AttentionError(f"{exported.directory} does not compile: {lines[0]}")


def run(exported: Exported) -> Measured:
    """Run the self-test of a project that is built.

    Raises
    ------
    AttentionError
        When the board disagrees with numpy.
    """
    try:
        done = _make(exported, "run", _RUN_S)
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        raise AttentionError(
            f"the self-test did not end within {_RUN_S:.0f} s; try fewer --vectors"
        ) from error
    facts = {name: int(value) for name, value in _FACT.findall(said)}
    if done.returncode != 0 or "\nPASS\n" not in said:
        wrong = [line for line in said.splitlines() if "NOT" in line or "FAULT" in line]
        raise AttentionError(
            f"the self-test failed on {exported.target.name}: {'; '.join(wrong) or said[-200:]}"
        )
    update = bytes.fromhex("".join(re.findall(r"^update ([0-9a-f]+)$", said, flags=re.MULTILINE)))
    prefix = "instructions_"
    instructions = {
        name.removeprefix(prefix): count for name, count in facts.items() if name.startswith(prefix) and count
    }
    ranking, others = facts["stack_ranking"], (facts["stack_pass"], facts["stack_update"])
    return Measured(
        scoring=_memory(exported, "app", ranking),
        learning=_memory(exported, "app-learning", max(ranking, *others)),
        instructions=instructions,
        facts=facts,
        update=update,
    )


def sizes(exported: Exported) -> Measured:
    """Give what is known without running."""
    return Measured(scoring=_memory(exported, "app", 0), learning=_memory(exported, "app-learning", 0))


def _make(exported: Exported, goal: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    # QEMU's semihosting writes to stderr.
    return subprocess.run(
        ["make", "-s", "-C", str(exported.directory), goal],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"LC_ALL": "C"},
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _memory(exported: Exported, program: str, stack: int) -> Memory | None:
    if exported.target.is_host:
        return None
    listed = subprocess.run(
        [f"{exported.target.prefix}size", str(exported.directory / "build" / program)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    text, data, bss = map(int, listed.splitlines()[1].split()[:3])
    return Memory(flash=text + data, static=data + bss, stack=stack)


def report(exported: Exported, measured: Measured | None) -> dict[str, Any]:
    """Give the report, as ``report.json`` keeps it; what was not measured is null."""
    rows, dim = exported.model.shape
    facts: dict[str, Any] = {
        "target": exported.target.name,
        "board": exported.target.board,
        "quant": "int8" if isinstance(exported.model.table, QuantisedTable) else "float32",
        "items": rows,
        "dim": dim,
        "model_bytes": exported.model_bytes,
        "interactions": int(exported.golden.positives.size),
    }
    for name in ("scoring", "learning"):
        memory = getattr(measured, name) if measured is not None else None
        facts[name] = memory and {
            "flash_bytes": memory.flash,
            "ram_bytes": memory.ram if memory.stack else None,
            "static_bytes": memory.static,
            "stack_bytes": memory.stack or None,
        }
    ran = measured is not None and bool(measured.facts)
    facts["instructions"] = (measured.instructions or None) if measured is not None else None
    facts["self_test"] = "passed" if ran else None
    if measured is not None and ran:
        facts["vectors_ranked_alike"] = measured.facts["ranked_alike"]
        facts["score_difference"] = measured.facts["score_difference_e9"] / 1e9
        facts["training_difference"] = measured.facts["training_difference_e9"] / 1e9
        facts["update_bytes"] = measured.facts["bytes_update"]
    return facts


def report_text(facts: dict[str, Any]) -> dict[str, str]:
    """Give the report's facts as a person reads them, by name."""
    lines = {
        "model": f"{facts['items']} items x {facts['dim']}, {facts['quant']}: {facts['model_bytes']:,} bytes",
        "board": f"{facts['target']} ({facts['board']})",
    }
    for name, what in (("scoring", "ten best"), ("learning", f"{facts['interactions']} interactions")):
        memory = facts[name]
        if memory:
            stack = f" with {memory['stack_bytes']:,} of stack" if memory["stack_bytes"] else " without stack"
            ram = memory["ram_bytes"] or memory["static_bytes"]
            lines[name] = f"{memory['flash_bytes']:,} bytes of flash, {ram:,} of RAM{stack} ({what})"
    if facts["instructions"]:
        counts = facts["instructions"]
        lines["instructions"] = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    if facts["self_test"]:
        lines["self-test"] = (
            f"passed: scores within {facts['score_difference']:.1e}, {facts['vectors_ranked_alike']} vectors "
            f"ranked alike, training within {facts['training_difference']:.1e}"
        )
    return lines
