"""Runs ``edge-fleet simulate`` in a process of its own, on one thread, and gives what its folder tells."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def one_thread() -> dict[str, str]:
    """Give the environment in which numerical libraries use one thread."""
    return os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def simulate(data: str, *options: str) -> dict[str, Any]:
    """Give ``summary.json`` of a run, and the seconds of each round as ``rounds_seconds``."""
    program = str(Path(sys.executable).parent / "edge-fleet")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = [program, "simulate", "--data", data, *options, "--out", f"{folder}/run"]
        done = subprocess.run(command, env=one_thread(), check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr.strip())
        summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        return summary | {"rounds_seconds": [json.loads(line)["seconds"] for line in lines]}
