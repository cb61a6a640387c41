"""Whether a release works on this device: its scorer gives what numpy gives, its application says so.

Both are asked in processes of their own: TFLite ends the process with a segmentation fault on a model that it
cannot read, and an application may do anything.

    python -m edge.health DIR      the scorer that a device's directory asks for
"""

import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from broker.protocol.releases import APPLICATION, MODEL, SETTINGS, Manifest
from edge.config import load_config
from edge.scorer import NumpyScorer, make_scorer
from edge.slots import Slots
from trainer.params import ScoreFunction

_SCORER_S = 300.0
"""Loading TFLite takes seconds on a small board."""
_SHAPES = ((1, 1), (2, 4), (1000, 32))
_TOLERANCE = 1e-5
_MOST_SAID = 200
_PATH = "/usr/local/bin:/usr/bin:/bin"


def problem_of(directory: Path, manifest: Manifest, slot: Path) -> str | None:
    """Give what does not work, None when everything does.

    Parameters
    ----------
    directory : Path
        The device's.
    slot : Path
        Where the release is.
    """
    # Without a model or settings of its own it scores as before.
    if any(manifest.file(path) for path in (MODEL, SETTINGS)):
        found = _problem_of_scorer(directory)
        if found is not None:
            return f"the scorer does not work: {found}"
    if manifest.health:
        found = _problem_of_application(slot, manifest)
        if found is not None:
            return f"{manifest.health} says that the application does not work: {found}"
    return None


def _problem_of_scorer(directory: Path) -> str | None:
    command = [sys.executable, "-P", "-m", "edge.health", str(directory)]
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SCORER_S
        )
    except subprocess.TimeoutExpired:
        return f"it takes longer than {_SCORER_S:.0f} s"
    if done.returncode == 0:
        return None
    said = " ".join(done.stdout.decode("utf-8", "replace").split())[:_MOST_SAID]
    return said or _ending(done.returncode)


def _problem_of_application(slot: Path, manifest: Manifest) -> str | None:
    """Run the program that a signed release has for this: without arguments, input, output or a shell."""
    try:
        process = subprocess.Popen(
            [str((slot / manifest.health).resolve())],
            cwd=slot / APPLICATION,
            env={"PATH": _PATH, "PFEDREC_RELEASE": str(manifest.release)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that what it has started ends with it
        )
    except OSError as error:
        return f"it cannot be run: {os.strerror(error.errno or 0).lower()}"
    try:
        code = process.wait(manifest.health_timeout_s)
    except subprocess.TimeoutExpired:
        return f"it takes longer than {manifest.health_timeout_s} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None if code == 0 else _ending(code)


def _ending(code: int) -> str:
    return f"it ended with {code}" if code >= 0 else f"it was ended by signal {-code}"


def _difference(directory: Path) -> float:
    """Give how far the scorer's scores are from numpy's, at most."""
    config = load_config(directory, os.environ)
    choice = config.scorer_choice
    if (
        choice == "auto"
    ):  # with the package's own model: whether TFLite works here is not the release's matter
        choice = make_scorer(choice).name
    scorer, reference = make_scorer(choice, Slots(directory).model), NumpyScorer()
    rng = np.random.default_rng(1)
    worst = 0.0
    for shape in _SHAPES:
        table = rng.normal(size=shape).astype(np.float32)
        function = ScoreFunction(w=rng.normal(size=shape[1]).astype(np.float32), b=0.25)
        found, expected = scorer.logits(table, function), reference.logits(table, function)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return math.inf
        scores = [1.0 / (1.0 + np.exp(-logits.astype(np.float64))) for logits in (found, expected)]
        worst = max(worst, float(np.abs(scores[0] - scores[1]).max()))
    return worst


def main() -> int:
    """Compare; print what is wrong, and give 1 then."""
    try:
        difference = _difference(Path(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - whatever a model does to its interpreter is its problem
        sys.stdout.write(f"{error or type(error).__name__}\n")
        return 1
    if difference > _TOLERANCE:
        sys.stdout.write(f"its scores are up to {difference:.2g} from numpy's\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
