"""Many damaged messages for each decoder of the C core, under sanitizers: libFuzzer, or a mutator of our own.

``scripts/prove fuzz`` runs a million of each; the tests run some thousands.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from broker.protocol import messages
from broker.protocol.deltas import delta_bytes
from broker.protocol.modelfile import model_bytes
from edge.gateway.frames import encode_frame
from edge.gateway.messages import Answered, Contribute, Idle, Offer, Piece, Refused, Renumber, Send
from edge.gateway.messages import encode as encode_serial
from firmware_tools.ccore import C_FLAGS, SOURCES, core_directory
from tests.firmware_tools import decoding

TARGETS = ("head", "receipt", "chunk", "step", "model", "frame", "answer")
_HARNESS = Path(__file__).parents[1] / "firmware_tools" / "c" / "fuzz.c"
_LARGEST = 4096
"""Bytes of an input; longer ones have only more of the same."""


def seeds(target: str) -> list[bytes]:
    """Give sound inputs to begin with."""
    if target == "head":
        return [messages.encode(head) for head in decoding.heads()]
    if target == "receipt":
        return [messages.encode(receipt) for receipt in decoding.receipts()]
    if target == "chunk":
        return [messages.encode(chunk) for chunk in decoding.chunks()]
    if target == "step":
        rng = np.random.default_rng(0)
        tables = [
            rng.standard_normal((rows, dim), dtype=np.float32) for rows, dim in ((9, 3), (1, 1), (40, 8))
        ]
        return [
            bytes([len(table) - 1, table.shape[1] - 1]) + delta_bytes(np.zeros_like(table), table)
            for table in tables
        ]
    if target == "frame":
        contents = (b"x", bytes(5), bytes(range(200)), b"\0".join([b"ab", b"", bytes([7]) * 120]))
        return [bytes([200]) + b"".join(map(encode_frame, contents[:count])) for count in range(1, 5)]
    if target == "answer":
        answers = (
            Idle(time=1, online=1),
            Offer(instance=1, version=2, crc=3, model=4, mask=5, head=6),
            Piece(crc=1, offset=2, data=b"abc"),
            Contribute(instance=1, version=2, seq=3),
            Send(incarnation=1, seq=2, offset=3),
            Answered(incarnation=1, seq=2, verdict=3),
            Renumber(incarnation=1),
            Refused(reason=1),
        )
        return [encode_serial(answer) for answer in answers]
    models = [decoding.model(rows, 3, integers=integers) for rows in (1, 4, 9) for integers in (False, True)]
    return [model_bytes(model) for model in models]


def build(folder: Path, *, libfuzzer: bool) -> Path:
    """Build the fuzzer; which decoder it tries its environment says."""
    core, out = core_directory(), folder / "fuzz"
    compiler = ["clang", "-fsanitize=fuzzer,address,undefined"] if libfuzzer else ["cc", "-DOWN_MAIN"]
    if not libfuzzer:
        compiler.append("-fsanitize=address,undefined")
    subprocess.run(
        [
            *compiler,
            *C_FLAGS,
            "-O1",
            "-g",
            "-fno-sanitize-recover=all",
            f"-I{core / 'include'}",
            str(_HARNESS),
            *(str(core / source) for source in SOURCES),
            "-lm",
            "-o",
            str(out),
        ],
        check=True,
    )
    return out


def fuzz(program: Path, target: str, runs: int, seed: int, *, libfuzzer: bool) -> tuple[bool, str]:
    """Give one decoder so many inputs; tell whether all went well, and what the fuzzer said."""
    with tempfile.TemporaryDirectory(prefix="pfedrec-fuzz-") as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, content in enumerate(seeds(target)):
            (corpus / str(number)).write_bytes(content)
        if libfuzzer:
            options = (f"-runs={runs}", f"-seed={seed}", f"-max_len={_LARGEST}", "-verbosity=0")
            command = [str(program), *options, "-timeout=10", f"-artifact_prefix={folder}/", str(corpus)]
        else:
            command = [str(program), str(runs), str(seed), *map(str, sorted(corpus.iterdir()))]
        environment = os.environ | {"TARGET": str(TARGETS.index(target))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def has_libfuzzer() -> bool:
    """Tell whether clang is there, and has its fuzzer."""
    if shutil.which("clang") is None:
        return False
    program = (
        "#include <stdint.h>\n#include <stddef.h>\nint LLVMFuzzerTestOneInput(const uint8_t *d, size_t n);"
    )
    program += "int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n){(void)d;(void)n;return 0;}"
    with tempfile.TemporaryDirectory(prefix="pfedrec-fuzz-") as name:
        command = ["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", f"{name}/probe"]
        return (
            subprocess.run(command, input=program, text=True, capture_output=True, check=False).returncode
            == 0
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof; give the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/prove fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each decoder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--own", action="store_true", help="our own mutator, though there is libFuzzer")
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="DECODER")
    options = parser.parse_args(arguments)
    libfuzzer = not options.own and has_libfuzzer()
    failed = False
    with tempfile.TemporaryDirectory(prefix="pfedrec-fuzz-") as name:
        program = build(Path(name), libfuzzer=libfuzzer)
        for target in options.targets:
            began = time.monotonic()
            well, said = fuzz(program, target, options.runs, options.seed, libfuzzer=libfuzzer)
            by = "libFuzzer" if libfuzzer else "our own mutator"
            outcome = "no finding" if well else f"A FINDING\n{said}"
            sys.stdout.write(
                f"{target}: {options.runs} inputs by {by} in {time.monotonic() - began:.0f} s: {outcome}\n"
            )
            failed = failed or not well
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
