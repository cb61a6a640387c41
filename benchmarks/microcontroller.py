"""The C core beside TFLite Micro: the same table in 8 bits, the same users' vectors, in one process.

Usage:
    python -m benchmarks.microcontroller --run runs/films --tflite films-int8.tflite

The model is made by ``firmware-tools build --quant int8``. TFLite Micro (``pip install --pre tflite-micro``)
gives the logits of all items, in 256 steps; the C core the ten best, by 32-bit integers.
"""

import argparse
import contextlib
import io
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_tools.ccore import host_core
from firmware_tools.verification import read_run
from trainer.integers import quantise_table

ROUNDS = 9
CALLS = 400


def arena_bytes(interpreter: Any) -> int:
    """Give what TFLite Micro has allocated; it tells on stdout, from C++."""
    with tempfile.TemporaryFile() as told:
        kept = os.dup(1), os.dup(2)
        try:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            with contextlib.redirect_stdout(io.StringIO()):
                interpreter.print_allocations()
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
        told.seek(0)
        found = re.search(rb"Arena allocation total (\d+) bytes", told.read())
    return int(found[1]) if found else 0


def micro_scorer(
    content: bytes, W: NDArray[np.float32], b: NDArray[np.float32]
) -> tuple[Callable[[int], None], int]:
    """Give a function that scores for a user with TFLite Micro, and its arena's bytes."""
    from tflite_micro import runtime  # noqa: PLC0415 - only this benchmark needs it

    interpreter = runtime.Interpreter.from_bytes(content)
    details = [interpreter.get_input_details(number) for number in range(2)]
    vector, bias = sorted(range(2), key=lambda number: -len(details[number]["shape"]))

    def quantised(number: int, values: NDArray[np.float32]) -> NDArray[np.int8]:
        parameters = details[number]["quantization_parameters"]
        steps = np.rint(values / parameters["scales"][0] + parameters["zero_points"][0])
        result: NDArray[np.int8] = steps.clip(-128, 127).astype(np.int8)
        return result

    # Not its work: done before anything is timed.
    vectors = [quantised(vector, w[None]) for w in W]
    biases = [quantised(bias, np.array([each], dtype=np.float32)) for each in b]

    def score(user: int) -> None:
        interpreter.set_input(vectors[user], vector)
        interpreter.set_input(biases[user], bias)
        interpreter.invoke()

    score(0)
    return score, arena_bytes(interpreter)


def seconds(call: Callable[[int], object]) -> float:
    """Give the time of one call, of several in a row."""
    began = time.perf_counter()
    for number in range(CALLS):
        call(number)
    return (time.perf_counter() - began) / CALLS


def main() -> None:
    """Print both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run with --save-users")
    parser.add_argument("--tflite", type=Path, required=True, help="its table, built with --quant int8")
    options = parser.parse_args()
    users = read_run(options.run)
    table, core = quantise_table(users.table), host_core()
    micro, arena = micro_scorer(options.tflite.read_bytes(), users.W, users.b)

    def by_core(number: int) -> object:
        return core.ten_best(table, users.W[number % len(users.W)])

    def by_micro(number: int) -> None:
        micro(number % len(users.W))

    # In turns, so that whatever else runs here slows both.
    times = [(seconds(by_core), seconds(by_micro)) for _ in range(ROUNDS)]
    ours, theirs = (float(np.median(each)) for each in zip(*times, strict=True))
    ratio = float(np.median([micro_s / core_s for core_s, micro_s in times]))
    n_items, dim = table.values.shape
    ram = 2 * dim + 10 * 8 + -(-n_items // 8)
    print(f"{n_items} items x {dim}, a call from Python, median of {ROUNDS} rounds in turns")
    print(f"C core, ten best       {1e6 * ours:8.1f} µs   {ram:6,} bytes (vector, ten best, mask)")
    print(f"TFLite Micro, logits   {1e6 * theirs:8.1f} µs   {arena:6,} bytes (arena)")
    print(f"TFLite Micro takes {ratio:.1f} times the time and {arena / ram:.1f} times the memory")


if __name__ == "__main__":
    main()
